"""What a server says of one of its own answers, on a cache that holds nothing of the load."""

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, asked for again (the rerun) and sent back to be judged, token by token.

    Log-probabilities are natural: nats. A place is an index of the answer's tokens.
    """

    request: str
    tokens: int  # of the answer
    text: str = ""  # what the server says alone
    first_difference: int = -1  # place where the rerun first says something else; -1: nowhere
    gap: float | None = 0.0  # how much likelier the rerun finds its own token there; None: it does not tell
    surprisals: tuple[float, ...] = ()  # -log p of each of the answer's tokens; () where they were not told
    deficits: tuple[float, ...] = ()  # how much likelier the likeliest token was at each place; () likewise
    told_surprisals: tuple[float, ...] = ()  # -log p of each as it came with the answer, under load; () likewise
    bypassed: bool = True  # proved: no token of the rerun's prompt came from a cache of the load
    rerun_why: str = ""  # why the rerun says nothing
    surprisal_why: str = ""  # why the answer was not judged

    @property
    def mute(self) -> bool:
        """Return whether the server told nothing that could judge its answer."""
        return bool(self.rerun_why and self.surprisal_why)
