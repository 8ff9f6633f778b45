"""What a step computed: tokens go out to the clients, prompts into the cache, ended requests off the device."""

from collections.abc import Callable

from repro.base.probe import Tokens
from repro.serve.sched.batch import Batch
from repro.serve.sched.release import Ending, Release
from repro.serve.sched.request import Request
from repro.serve.sched.sampling import Chosen, Sampled
from repro.serve.sched.state import Requests, Vocabulary
from repro.serve.types import Update

Prefilled = Callable[[Request, Sampled], bool]


class Results:
    """Takes the results of steps. `prefilled` takes over a request whose prompt is computed; False: decode it here."""

    def __init__(
        self, requests: Requests, release: Release, vocabulary: Vocabulary, prefilled: Prefilled | None
    ) -> None:
        self._requests = requests
        self._release = release
        self._prefilled = prefilled
        by_meaning = requests.config.numerics == "tensors"  # stamps choose tokens that mean nothing
        self._end_tokens = vocabulary.end_tokens if by_meaning else frozenset()

    def commit(self, batch: Batch, chosen: Chosen | None) -> None:
        """Take a step's tokens: out to the clients, into the cache, and off the device where a request ends."""
        if chosen is not None:
            self._take_all(batch, chosen)
        if batch.prefill:
            shared = batch.members if self._requests.config.retract else batch.sampling_members
            for member in shared:
                if member.is_current:
                    self._release.share(member.request, member.end)

    def _take_all(self, batch: Batch, chosen: Chosen) -> None:
        for number, scores in chosen.scored.items():
            if batch.members[number].is_current:
                batch.members[number].request.scores += scores
        for member, run in zip(batch.sampling_members, chosen.runs(), strict=True):
            request = member.request
            if not member.is_current:
                self._release.late_result(request)
                continue
            request.drafted -= batch.drafts
            request.computed += len(run.tokens) - 1
            request.planned += len(run.tokens) - 1
            if request.aborted:
                continue
            if batch.prefill and self._prefilled is not None and self._prefilled(request, run):
                self._release.hold(request)
            else:
                self.take(request, run, verified=bool(batch.drafts))

    def take(self, request: Request, run: Sampled, *, verified: bool) -> None:
        """Give tokens to the client, up to the one that ends the answer; `verified`: they come of a verify step."""
        text, ending, count = "", None, 0
        while count < len(run.tokens) and ending is None:
            more, ending = self._push(request, int(run.tokens[count]))
            text += more
            count += 1
        run = run.part(0, count)
        self._count(request, count, verified)
        tokens, logprobs = tuple(run.tokens.tolist()), tuple(run.logprobs.tolist())
        self._requests.probes.emit(Tokens(request.id, tokens, logprobs, self._requests.device.now_us))
        if len(request.output) == 1:
            self._requests.emit("first_token", request)
        scores, request.scores = tuple(request.scores), []
        update = Update(tokens, logprobs, text, run.top, speculation=request.speculation, scores=scores)
        if ending is None:
            request.updates.put_nowait(update)
        else:
            self._release.release(request)
            self._release.finish(request, ending, update)

    def _push(self, request: Request, token: int) -> tuple[str, Ending | None]:
        """Append a token to the answer; return its text and how it ends the answer, if it does."""
        request.output.append(token)
        if token in self._end_tokens and not request.sampling.ignore_eos:
            return request.text.flush(), Ending("stop", token)
        text, stopped = request.text.push(token)
        if stopped is not None:
            return text, Ending("stop", stopped)
        if len(request.output) >= request.max_tokens:
            return text + request.text.flush(), Ending("length")
        return text, None

    def _count(self, request: Request, tokens: int, verified: bool) -> None:
        """Count tokens that the client gets; drafts behind the end of the answer are not counted."""
        counts = self._requests.counts
        counts.generated_tokens += tokens
        if verified:
            assert request.acceptance is not None
            request.acceptance.add(tokens)
            counts.verify_steps += 1
            counts.accepted_drafts += tokens - 1
