"""`python -m repro.fleet.worker FOLDER`: makes the runs that come as lines on standard input, one after another.

Each answers with a line on standard output: a result, or the sentence of a disk that is full. When the other
end closes, killed perhaps, the process ends at once, in the middle of a run too: nobody is there to count it.
"""

import os
import queue
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch

from repro.base.errors import RecordError
from repro.fleet.nightly.execute import execute
from repro.fleet.nightly.job import Job, JobResult


class Answer(msgspec.Struct, frozen=True):
    """One line of a worker: the result, or why nothing can be recorded any more."""

    result: JobResult | None = None
    disk: str = ""


def main() -> None:
    """Run jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a run prints must not stand among the answers
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, lines), daemon=True).start()
    while True:
        job = msgspec.json.decode(lines.get(), type=Job)
        try:
            answer = Answer(execute(job, root))
        except RecordError as error:
            answer = Answer(disk=str(error))
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def _listen(lines_in: BinaryIO, lines: "queue.SimpleQueue[bytes]") -> None:
    for line in lines_in:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
