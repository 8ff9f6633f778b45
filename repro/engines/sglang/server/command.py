"""`repro sglang -- ARGS`: a server with the plugin, until Ctrl-C."""

import signal
import threading
import time
from collections.abc import Callable, Sequence

from repro.engines.sglang.server.launch import SglangServer, control
from repro.serve.launch import as_interrupt

CHECK_S = 1.0


def run_sglang(args: Sequence[str], say: Callable[[str], None]) -> None:
    """Launch a server, say where it and its control are, and return on Ctrl-C or SIGTERM.

    Raises UsageError and TargetError as `SglangServer` does, TargetError too when the server ends by itself.
    """
    server = SglangServer(args)
    with as_interrupt(signal.SIGTERM, signal.SIGHUP):  # the server is in a session of its own, and outlives a terminal
        _run(server, say)


def _run(server: SglangServer, say: Callable[[str], None]) -> None:
    try:
        server.start()
        with control(server) as controls:
            threading.Thread(target=controls.serve_forever, daemon=True).start()
            proofs = ", ".join(f"{proof.controller} in process {proof.pid}" for proof in server.proofs)
            say(f"SGLang {server.proofs[0].version} at {server.url}; the plugin is active: {proofs}")
            say(f"control at http://127.0.0.1:{controls.server_port}: POST /plan, GET /counts (Ctrl-C ends both)")
            try:
                while True:
                    time.sleep(CHECK_S)
                    server.check()
            finally:
                controls.shutdown()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
