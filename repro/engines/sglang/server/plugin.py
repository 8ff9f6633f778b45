"""The plugin: SGLang calls `register` in each of its processes (entry point group `sglang.srt.plugins`).

SGLang only logs a plugin that fails, so this one proves itself: the process that has made a HiCache controller
connects to the launcher and says so. What it is message over that connection it puts in force, and answers with counts.
"""

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection
from typing import Any

import msgspec
import torch

from repro.engines.sglang.classes.host_memory import unpin
from repro.engines.sglang.server import threads
from repro.engines.sglang.server.switches import Plan, Switches

ADDRESS, KEY = "REPRO_SGLANG_ADDRESS", "REPRO_SGLANG_KEY"  # environment variables that the launcher sets
LIFELINE = "REPRO_SGLANG_LIFELINE"  # likewise: a pipe that ends when the launcher does, open in the first process only
TAKEN_S = 30.0

# What a host pool copies, by the method that does it: the fault's point and its actor.
COPIES = {
    "load_to_device_per_layer": ("loadback.copy_layer", "load"),
    "backup_from_device_all_layer": ("writeback.copy_layer", "write"),
}


class Proof(msgspec.Struct, frozen=True):
    """What a process says of itself when its controller is made."""

    pid: int
    controller: str
    version: str


def register() -> None:
    """Put our streams, kernels and hooks into this process of SGLang."""
    end_with_launcher()
    hooks = _module("sglang.srt.plugins.hook_registry")
    switches = Switches()
    if not torch.cuda.is_available():
        _play_on_threads(switches)
    controller = "sglang.srt.managers.cache_controller"

    def made(result: object, self: Any, *args: object, **keywords: object) -> None:
        prove(type(self).__name__, switches)

    def wait_until(original: Any, self: Any, threshold: int) -> Any:
        if self.consumer_index < 0:  # no load-back: SGLang's own wait returns at once
            return original(self, threshold)
        loaded = self.events[self.consumer_index].load_events[threshold].query()
        return original(self, threshold) if switches.waits(loaded) else None

    hooks.HookRegistry.register(f"{controller}.HiCacheController.__init__", made, hooks.HookType.AFTER)
    hooks.HookRegistry.register(f"{controller}.LayerDoneCounter.wait_until", wait_until, hooks.HookType.AROUND)


def end_with_launcher() -> None:
    """Let the server end with its launcher, also one that is killed without a word; its first process watches."""
    if os.getpid() != os.getsid(0):
        return
    lifeline = int(os.environ[LIFELINE])

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def prove(controller: str, switches: Switches) -> None:
    """Connect to the launcher, say what was made, and do what it says from then on."""
    host, _, port = os.environ[ADDRESS].rpartition(":")
    connection = Client((host, int(port)), authkey=bytes.fromhex(os.environ[KEY]))
    proof = Proof(os.getpid(), controller, _module("sglang.version").__version__)
    connection.send_bytes(msgspec.json.encode(proof))
    # The server is up only behind this: else the launcher could find it up, and the proof still on its way.
    if not connection.poll(TAKEN_S):
        raise TimeoutError(f"the launcher has not taken the proof within {TAKEN_S:.0f} s")
    connection.recv_bytes()
    threading.Thread(target=_obey, args=(connection, switches), daemon=True).start()


def _obey(connection: Connection, switches: Switches) -> None:
    """Take plans, an empty message for none, and answer each with the counts."""
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return  # the launcher is gone
        if message:
            switches.use(msgspec.json.decode(message, type=Plan))
        connection.send_bytes(msgspec.json.encode(switches.counts()))


def _play_on_threads(switches: Switches) -> None:
    """Let HiCache run on a CPU: threads for streams, and plain copies for the kernel that moves pages."""
    host = _module("sglang.srt.mem_cache.memory_pool_host")
    for controller in ("managers.cache_controller", "mem_cache.hybrid_cache.hybrid_cache_controller"):
        _module(f"sglang.srt.{controller}").device_module = threads
    unpin(host)
    copying = threading.local()

    def noted(method: str, copies: Callable[..., None]) -> Callable[..., None]:
        def copy(*args: object, **keywords: object) -> None:
            copying.now = COPIES[method]
            copies(*args, **keywords)

        return copy

    for pool in filter(lambda each: isinstance(each, type), list(vars(host).values())):
        for method in COPIES.keys() & vars(pool).keys():
            setattr(pool, method, noted(method, vars(pool)[method]))

    def transfer_kv_direct(
        src_layers: Sequence[torch.Tensor],
        dst_layers: Sequence[torch.Tensor],
        src_indices: torch.Tensor,
        dst_indices: torch.Tensor,
        page_size: int,
    ) -> None:
        point, actor = copying.now
        delay_s = switches.delay_s(point, actor, -1)
        source_rows, target_rows = src_indices.clone(), dst_indices.clone()

        def copy() -> None:
            time.sleep(delay_s)
            for source, target in zip(src_layers, dst_layers, strict=True):
                target[target_rows] = source[source_rows]

        threads.current_stream().put(copy)

    host.transfer_kv_direct = transfer_kv_direct


def _module(name: str) -> Any:
    return importlib.import_module(name)
