"""Messages between hosts: late by the network's latency, and by whatever the probes ask for."""

import asyncio
from typing import Protocol

from repro.base.probe import Decision, HostMessage, Probes
from repro.serve.device.base import Device
from repro.serve.pd.messages import Message, kind


class Receiver(Protocol):
    """A host that messages are delivered to."""

    @property
    def device(self) -> Device:
        """Return the device as this host sees it."""

    @property
    def alive(self) -> bool:
        """Return whether the host still listens."""

    def receive(self, message: Message) -> None:
        """Take a message; called in the event loop, and must not wait."""


class Network:
    """Delivers messages to the hosts that have joined."""

    def __init__(self, probes: Probes, latency_us: float) -> None:
        self._probes = probes
        self._latency_us = latency_us
        self._receivers: dict[str, Receiver] = {}

    def join(self, receiver: Receiver) -> None:
        """Let a host be reached under its name."""
        self._receivers[receiver.device.name] = receiver

    def send(self, sender: Device, to: str, message: Message) -> None:
        """Send a message; the sender does not learn whether it arrives."""
        sent = sender.tick()
        decision = self._probes.hit(f"pd.{kind(message)}", sender.name) or Decision()
        if decision.kind == "drop":
            return
        late_us = self._latency_us + decision.delay_us
        loop = asyncio.get_running_loop()
        loop.call_later(late_us / 1e6, self._deliver, sender, sent, to, message, decision)
        if decision.kind == "duplicate":
            loop.call_later((late_us + self._latency_us) / 1e6, self._deliver, sender, sent, to, message, Decision())

    def _deliver(self, sender: Device, sent: int, to: str, message: Message, decision: Decision) -> None:
        receiver = self._receivers[to]
        if not receiver.alive:
            return
        device = receiver.device
        what = kind(message)
        if late_us := decision.delay_us:
            self._probes.carried_out(decision, f"pd.{what}", device.now_us, late_us, actor=sender.name)
            if device.started_since(device.now_us - late_us):
                self._probes.overtaken(decision)
        self._probes.emit(HostMessage(what, sender.name, sent, to, device.tick(), device.now_us))
        receiver.receive(message)
