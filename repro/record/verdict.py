"""The verdict of a run: `repro run --json` prints it, run.json holds it, and all readers share this struct."""

import msgspec
from msgspec import UNSET, UnsetType

from repro.base.verdict_word import VerdictWord
from repro.record.counts import Compared, ContextsCut, Funnel, Retries
from repro.record.exercised import Exercised


class FirstFinding(msgspec.Struct, frozen=True):
    """When a layer found something first, and how many requests had been sent by then."""

    requests: int
    virtual_s: float


class ClientLag(msgspec.Struct, frozen=True):
    """How late the client's own event loop ran, in milliseconds; zeros in virtual time."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class FaultOutcome(msgspec.Struct, frozen=True):
    """What became of one fault. The last four are set where it changed bytes."""

    armed: int = 0
    reached: int = 0  # hits of its point
    fired: int = 0
    reordered: int = 0
    changed: int | UnsetType = UNSET  # how often bytes became others
    read: int | UnsetType = UNSET  # changes that a step read
    detected: int | UnsetType = UNSET  # changes whose read the canary noticed
    lost: int | UnsetType = UNSET  # changes whose copies could not be followed


class EndedEarly(msgspec.Struct, frozen=True):
    """What ended a run before its load was done, and after how many events."""

    why: str
    event: int


class DetectorAnswer(msgspec.Struct, frozen=True):
    """What one detector answered about a run."""

    answer: str  # clean | anomaly | unknown | not_applicable
    checked: int | None = None  # None: not recorded
    why: str = ""


class RunVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. Fields are in the order in which the JSON object has them."""

    word: VerdictWord = msgspec.field(name="verdict")
    why: tuple[str, ...] = ()
    scenario: str
    seed: int
    control: bool = False
    requests: int = 0
    findings: dict[str, int] = {}  # detector -> count
    signatures: dict[str, int] = {}  # cause -> count
    first: dict[str, FirstFinding] = {}  # layer -> its first finding
    detectors: dict[str, str] = {}  # detector -> its answer
    oracle: Compared = Compared()
    contexts_cut: ContextsCut = ContextsCut()
    client_lag_ms: ClientLag = ClientLag()
    funnel: Funnel = Funnel()
    retries: Retries = Retries()
    faults: dict[str, FaultOutcome] = {}
    exercised: Exercised = msgspec.field(default_factory=Exercised)
    virtual_s: float = 0.0
    cut: EndedEarly | None = None
    fingerprint: str = ""
    token: str = ""  # "" for a run that does not come again from its seed
    run_dir: str = ""
    report: str = ""  # "" where none was written
