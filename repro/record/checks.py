"""A server's second answer and scores of one of its answers, on a cache that holds nothing of the load."""

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, asked for again (the rerun) and sent back to be judged, token by token.

    Log-probabilities are natural: nats. A place is an index of the answer's tokens.
    """

    request: str
    tokens: int  # length of the answer
    text: str = ""  # the lone answer
    first_difference: int = -1  # place where the rerun first differs; -1: nowhere
    gap: float | None = 0.0  # how much likelier the rerun finds its own token there; None: not reported
    surprisals: tuple[float, ...] = ()  # -log p of each of the answer's tokens; () where not reported
    deficits: tuple[float, ...] = ()  # how much likelier the likeliest token was at each place; () likewise
    surprisals_under_load: tuple[float, ...] = ()  # -log p of each as the answer reported it; () likewise
    bypassed: bool = True  # proved: no token of the rerun's prompt came from a cache of the load
    rerun_why: str = ""  # why the rerun proves nothing
    surprisal_why: str = ""  # why the answer was not judged

    @property
    def mute(self) -> bool:
        """Return whether neither the rerun nor the scores can judge the answer."""
        return bool(self.rerun_why and self.surprisal_why)
