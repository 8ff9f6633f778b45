"""`python -m repro.pool.worker`: makes the calls that come as lines on standard input, one after another.

Each is answered with one line on standard output. When the other end closes, killed perhaps, the process ends at
once, also in the middle of a call: nobody is there to take the result.
"""

import os
import queue
import sys
import threading
import traceback
from typing import BinaryIO

from repro.pool.call import made

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # torch reads them when a call imports it


def main() -> None:
    """Make calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a call prints must not stand among the answers
    os.environ |= ONE_THREAD
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, lines), daemon=True).start()
    try:
        while True:
            answers.write(made(lines.get()) + b"\n")
            answers.flush()
    except BaseException:  # the interpreter must not end while the other thread reads: it would abort
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _listen(lines_in: BinaryIO, lines: "queue.SimpleQueue[bytes]") -> None:
    for line in lines_in:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
