"""What stands for the runs of a fleet; workers can import it."""

import sys
import time

from repro.fleet.runs import PlannedRun
from repro.record.verdict import RunVerdict
from tests.builders import make_verdict

DEAD = "exit 4: the disk is full"


def pretended(planned: PlannedRun) -> RunVerdict | str:
    """Return a verdict, or hang, fail or die, as the seed says."""
    if planned.seed == 8:
        time.sleep(600)
    if planned.seed == 9:
        return DEAD
    if planned.seed == 10:
        sys.exit("no words in JSON")
    return make_verdict(seed=planned.seed, verdict="clean" if planned.control else "anomaly")
