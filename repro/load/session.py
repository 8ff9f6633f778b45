"""Replays one session: turn by turn, each asked when the one before has been answered.

gap -> order, burst -> prompt (cut to fit) -> attempt 0 -> [wait, attempt 1 ...] -> history
                                                 |
                                                 +-> one SentRequest each
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from repro.load.answer import RETRIABLE, Answer, last_part
from repro.load.client import Ask, ChatClient
from repro.load.exchange import Close, Pause
from repro.load.faults import Abort, ClientAction, ClientPoint, Disconnect, HoldForBurst, LetOthersPass, SlowReader
from repro.load.history import History, Prompt
from repro.load.lag import clock_of
from repro.load.listener import CountsDetector, OnlineFinding, TextDetector
from repro.load.plan import LoadPlan
from repro.load.wire import Counts, Piece
from repro.record.requests import SentRequest, SpecCounts
from repro.trace.format import Session, Turn

REQUEST_ID_MAX = 100  # servers take 128 printable characters
LENGTH_ATTEMPTS_MAX = 6  # a prompt is shortened so often for a server that says it is too long
LENGTH_WORDS = re.compile(r"context.length|too long|longer than|maximum.{0,20}length|exceeds", re.IGNORECASE)
LENGTH_RATIO_MAX = 64  # a larger number in a refusal is no count of tokens
LENGTH_NUMBER = re.compile(r"(?:context length|maximum|limit|at most)\D{0,40}?(\d{2,})", re.IGNORECASE)
DISCONNECTS_MAX = 8  # one turn is asked again so often after a fault cut its connection
NO_ANSWER = "(no answer)"  # takes the place of an answer that never came, in the history


class Crowd(Protocol):
    """What a session needs of those that run beside it."""

    def sending(self) -> None:
        """A request goes out."""

    def grown(self, answer: Answer) -> None:
        """An answer has got a piece."""

    def text_detectors(self, request: str, prompt: str) -> Sequence[TextDetector]:
        """Return fresh detectors for an answer."""

    def counts_detectors(self, request: str) -> Sequence[CountsDetector]:
        """Return fresh detectors for the counts of an answer."""

    def found(self, request: str, finding: OnlineFinding) -> None:
        """An online detector is sure."""

    def finished(self, request: SentRequest, answer: Answer) -> None:
        """A request is over, however it went."""

    def turn_over(self, session: Session, turn: int) -> None:
        """A turn is over: sub-agents that it starts may begin."""

    async def others_answered(self, answers: int, wait_max_s: float) -> None:
        """Return when so many answers of others are complete, or the time is up."""

    async def permission(self) -> None:
        """Return when the rate ceiling lets another request through."""


class SessionRun:
    """One session on its way."""

    def __init__(self, session: Session, client: ChatClient, plan: LoadPlan, crowd: Crowd) -> None:
        self.session = session
        self.client = client
        self.plan = plan
        self.crowd = crowd
        self._clock = clock_of(asyncio.get_running_loop())
        self.history = History(session.tools, plan.count_tokens, plan.context_tokens_max)

    async def run(self, due_s: float) -> None:
        """Ask every turn; `due_s` is when the first one should have been sent."""
        for index, turn in enumerate(self.session.turns):
            if index > 0:
                due_s = self._clock() + scaled_gap(turn, self.plan)
                await self._wait_until(due_s)
            await self._wait_with_others()
            self.history.add_input(turn.messages)
            answer = await self._ask(index, turn, due_s)
            self._remember(turn, answer)
            self.crowd.turn_over(self.session, index)

    async def _wait_until(self, due_s: float) -> None:
        delay_s = due_s - self._clock()
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    async def _wait_with_others(self) -> None:
        order = self.fault("client.order")
        if isinstance(order, LetOthersPass):
            await self.crowd.others_answered(order.answers, order.wait_max_s)
        burst = self.fault("client.burst")
        if isinstance(burst, HoldForBurst) and burst.period_s > 0:
            now_s = self._clock()
            await self._wait_until((now_s // burst.period_s + 1) * burst.period_s)

    async def _ask(self, index: int, turn: Turn, due_s: float) -> Answer:
        """Ask until there is an answer, an abort, or an error that stays; one record an attempt.

        An answer that is convicted while it streams is given up and asked for again, as far as the plan allows.
        """
        attempt = failures = shortened = losses = given_up = 0
        convicted = ""  # the latest request that was given up
        answer_tokens = self._answer_tokens(turn)
        while True:
            prompt = self.history.prompt(answer_tokens)
            await self.crowd.permission()
            gives_up = given_up < self.plan.answers_given_up_max
            asked = _Attempt(self, index, turn, attempt, convicted, gives_up=gives_up)
            await asked.run(prompt, answer_tokens, due_s)
            answer = asked.answer
            attempt += 1
            if answer.counts is not None:
                self.history.counted(answer.counts.prompt_tokens)
            if asked.convicted:
                given_up += 1
                convicted = asked.request
            elif asked.lost is not None:
                losses += 1
                if losses > DISCONNECTS_MAX:
                    return answer
                await asyncio.sleep(asked.lost.retry_after_s)
            elif answer.error_kind == "rejected" and LENGTH_WORDS.search(answer.error):
                shortened += 1
                if shortened > LENGTH_ATTEMPTS_MAX:
                    return answer
                self.history.too_long(*_lengths_in(answer.error, answer_tokens))
            elif answer.error_kind in RETRIABLE and failures < self.plan.retries_max:
                await asyncio.sleep(self.plan.retry_after_s * 2**failures)
                failures += 1
            else:
                return answer

    def _answer_tokens(self, turn: Turn) -> int:
        """Return the recorded length of the answer, capped."""
        wanted = turn.max_tokens
        if wanted is None and turn.reply is not None:
            calls = "".join(f"{call.name} {call.arguments}" for call in turn.reply.tool_calls)
            wanted = self.plan.count_tokens(turn.reply.content + calls)
        cap = self.plan.answer_tokens_max
        if self.plan.context_tokens_max is not None:
            cap = min(cap, self.plan.context_tokens_max // 4)  # the question needs room too
        return max(1, min(cap, wanted or self.plan.answer_tokens_unknown))

    def _remember(self, turn: Turn, answer: Answer) -> None:
        """Put the answer that later turns build on into the history."""
        has_content = bool(answer.content or answer.calls)
        if turn.reply is not None and (self.plan.history == "recorded" or not has_content):
            self.history.add_recorded(turn.reply)
        else:
            if not has_content:
                answer.contents.append(NO_ANSWER)
            self.history.add_generated(answer)

    def fault(self, point: ClientPoint) -> ClientAction | None:
        """Return what a fault asks of this session at `point`."""
        return self.plan.faults(point, self.session.id)


class _Attempt:
    """One request of one turn; watches its answer."""

    def __init__(
        self, owner: SessionRun, index: int, turn: Turn, attempt: int, retry_of: str, *, gives_up: bool
    ) -> None:
        self.answer = Answer()
        self.request = request_id(owner.session.id, index, attempt)
        self.convicted = False  # a detector was sure in its stream, so it was given up
        self.lost: Disconnect | None = None  # the connection that we dropped on purpose
        self._owner = owner
        self._index, self._turn, self._attempt, self._retry_of = index, turn, attempt, retry_of
        self._gives_up = gives_up
        self._stopped = False  # we closed the stream at a piece of the answer
        leaving = (_abort_of(turn, owner.fault("client.abort")), owner.fault("client.disconnect"))
        self._leaving = [fault for fault in leaving if isinstance(fault, Abort | Disconnect)]
        slow = owner.fault("client.slow_reader")
        self._slow = slow if isinstance(slow, SlowReader) else None
        self._text_detectors: Sequence[TextDetector] = []
        self._counts_detectors: Sequence[CountsDetector] = []

    async def run(self, prompt: Prompt, answer_tokens: int, due_s: float) -> None:
        """Send, watch, record."""
        owner, crowd = self._owner, self._owner.crowd
        self._text_detectors = crowd.text_detectors(self.request, prompt.text)
        self._counts_detectors = crowd.counts_detectors(self.request)
        after_s, fault = self._timer()
        ask = Ask(self.request, prompt.messages, answer_tokens, owner.history.tools, after_s)
        crowd.sending()
        try:
            await owner.client.ask(ask, self.watch, self.answer)
            if self.answer.finish == "abort" and not self._stopped and isinstance(fault, Disconnect):
                self.lost = fault
        except asyncio.CancelledError:
            self.answer.fail("client", "interrupted")
            raise
        finally:
            self._note([detector.close() for detector in self._text_detectors])
            self._note([detector.close() for detector in self._counts_detectors])
            crowd.finished(self._sent(prompt, due_s), self.answer)

    def _timer(self) -> tuple[float | None, Abort | Disconnect | None]:
        """Return after how long the client gives up, and for which reason: the earlier one."""
        timers = [(fault.after_s, fault) for fault in self._leaving if fault.after_s is not None]
        return min(timers, key=lambda timer: timer[0]) if timers else (None, None)

    def watch(self, answer: Answer, piece: Piece) -> Close | Pause | None:
        """Look at a piece the moment it arrives."""
        self._owner.crowd.grown(answer)
        if self._convicts(answer, piece) and self._gives_up:
            self.convicted = True
            return self._stop(answer)
        for fault in self._leaving:
            if fault.after_tokens is not None and answer.tokens_seen >= fault.after_tokens:
                self.lost = fault if isinstance(fault, Disconnect) else None
                return self._stop(answer)
        if self._slow is not None and answer.pieces % self._slow.every_pieces == 0:
            return Pause(self._slow.pause_s)
        return None

    def _convicts(self, answer: Answer, piece: Piece) -> bool:
        found: list[OnlineFinding | None] = []
        text = last_part(answer)
        if text or piece.tokens:
            found += [detector.feed(text, piece.tokens, piece.logprobs) for detector in self._text_detectors]
        if piece.spec is not None:
            found += [detector.feed(piece.spec) for detector in self._counts_detectors]
        return self._note(found)

    def _note(self, found: Sequence[OnlineFinding | None]) -> bool:
        sure = [finding for finding in found if finding is not None]
        for finding in sure:
            self._owner.crowd.found(self.request, finding)
        return bool(sure)

    def _stop(self, answer: Answer) -> Close:
        self._stopped = True
        answer.finish = "abort"
        return Close()

    def _sent(self, prompt: Prompt, due_s: float) -> SentRequest:
        """Return what the client saw. What the server did not count, we have counted."""
        answer, reply = self.answer, self._turn.reply
        counts = answer.counts or Counts(prompt.tokens, answer.tokens_seen)
        spec = answer.spec or SpecCounts(counts.completion_tokens)
        by_tier = counts.cached_device_tokens is not None
        return SentRequest(
            request=self.request,
            session=self._owner.session.id,
            turn=self._index,
            attempt=self._attempt,
            due_us=due_s * 1e6,
            sent_us=_us(answer.sent_s),
            first_token_us=_us(answer.first_s),
            finished_us=_us(answer.finished_s),
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=spec.completion_tokens,
            cached_device_tokens=(counts.cached_device_tokens or 0) if by_tier else counts.cached_tokens,
            cached_host_tokens=counts.cached_host_tokens or 0,
            dropped_turns=prompt.dropped_turns,
            dropped_characters=prompt.dropped_characters,
            finish="disconnect" if self.lost is not None else answer.finish,
            error=f"{answer.error_kind}: {answer.error}" if answer.error else "",
            text=answer.text,
            expected=reply.content if reply is not None else "",
            tokens=answer.tokens,
            logprobs=answer.logprobs,
            retry_of=self._retry_of,
            spec_verify_ct=spec.spec_verify_ct,
            spec_accept_token_num=spec.spec_accept_token_num,
            spec_draft_token_num=spec.spec_draft_token_num,
        )


def _us(time_s: float) -> float:
    """Return a time in microseconds; -1 stays what never happened."""
    return time_s * 1e6 if time_s >= 0 else -1.0


def scaled_gap(turn: Turn, plan: LoadPlan) -> float:
    """Return the pause before a turn as the plan wants it."""
    gap_s = turn.gap_s * plan.time_scale
    return gap_s if plan.gap_max_s is None else min(gap_s, plan.gap_max_s)


def request_id(session: str, turn: int, attempt: int) -> str:
    """Return the request's name, fit for a header: printable, without spaces, unique."""
    tail = f":{turn}" + (f".{attempt}" if attempt else "")
    safe = re.sub(r"[^\x21-\x7e]", "_", session)
    if safe != session or len(safe) > REQUEST_ID_MAX:
        safe = f"{safe[: REQUEST_ID_MAX - 9]}~{hashlib.sha256(session.encode()).hexdigest()[:8]}"
    return safe + tail


def _abort_of(turn: Turn, fault: ClientAction | None) -> Abort | None:
    """Return the recorded cancellation, or else the one that a fault asks for."""
    if turn.abort_after_tokens is not None:
        return Abort(after_tokens=turn.abort_after_tokens)
    return fault if isinstance(fault, Abort) else None


def _lengths_in(text: str, answer_tokens: int) -> tuple[int | None, int, int | None]:
    """Return the token limit that a server's refusal names, the answer's length, and its count of the prompt."""
    found = LENGTH_NUMBER.search(text)
    if found is None:
        return None, answer_tokens, None
    limit = int(found[1])
    beyond = [number for number in map(int, re.findall(r"\d+", text)) if limit < number < LENGTH_RATIO_MAX * limit]
    return (
        limit,
        answer_tokens,
        max(beyond) - answer_tokens if beyond else None,
    )  # servers name the sum of prompt and answer
