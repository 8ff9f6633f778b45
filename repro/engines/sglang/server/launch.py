"""Launches SGLang's server with the plugin, refuses one that does not prove it, and passes plans on.

POST /plan   a TOML text: defects, [[fault]] and seed as in a scenario file; what was in force is over
GET  /counts what became of it: faults armed, reached and fired, waits kept and left out
"""

import importlib.util
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec

import repro
from repro.base.errors import ScenarioError, TargetError, UsageError
from repro.engines.sglang import pinned
from repro.engines.sglang.server import absent
from repro.engines.sglang.server.plugin import ADDRESS, KEY, LIFELINE, Proof
from repro.engines.sglang.server.switches import Counts, Plan, read

COMMAND = (sys.executable, "-m", "sglang.launch_server")
HICACHE = "--enable-hierarchical-cache"
PLUGIN = "repro"
ALLOWED = "SGLANG_PLUGINS"  # SGLang's own list of the plugins that it loads; all if it is not set
EXTRA = "sglang-server"  # our extra: the packages that a server imports
HEALTH_S = 5.0
START_S = 600.0  # a server on a busy machine takes minutes to import and load
POLL_S = 0.2
STOP_S = 20.0
ANSWER_S = 30.0  # a process answers from a thread of its own, whatever its scheduler does
CONTROL_S = 30.0  # a request of the control must arrive whole within this time
PLAN_BYTES_MAX = 1 << 20
PROCESSES_MAX = 64  # schedulers of one server


class SglangServer:
    """A server under way, from `start` to `stop`."""

    def __init__(self, args: Sequence[str], command: Sequence[str] = COMMAND) -> None:
        """Take the arguments of `python -m sglang.launch_server`.

        Raises UsageError without the pinned SGLang, and for a server that would have no HiCache or not our plugin.
        """
        pinned.require(EXTRA)
        if HICACHE not in args:
            raise UsageError(f"without HiCache there is nothing to perturb: add {HICACHE} behind --")
        allowed = os.environ.get(ALLOWED, "")
        if allowed and PLUGIN not in map(str.strip, allowed.split(",")):
            raise UsageError(f"{ALLOWED}={allowed} keeps the plugin out: add ,{PLUGIN} to it, or unset it")
        self.url = url_of(args)
        self._command = (*command, *args)
        self._key = secrets.token_bytes(16)
        self._listener = Listener(("127.0.0.1", 0), backlog=PROCESSES_MAX, authkey=self._key)
        self._folder = TemporaryDirectory(prefix="repro-sglang-")
        self._lock = threading.Lock()
        self._proven: list[tuple[Proof, Connection]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = os.pipe()  # the server reads one end, and ends when this process no longer holds the other
        self._stopped = False

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """Return the reports of the server's processes."""
        with self._lock:
            return tuple(proof for proof, _ in self._proven)

    def start(self, start_s: float = START_S) -> None:
        """Launch, and return when the server is up and its plugin proven.

        Raises TargetError for a server that ends, that is not up in time, or that is up without the plugin.
        """
        write_plugin(Path(self._folder.name))
        ours = (self._folder.name, str(Path(repro.__file__).parents[1]), os.environ.get("PYTHONPATH"))
        host, port = self._listener.address[0], self._listener.address[1]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, ours)),
            ADDRESS: f"{host}:{port}",
            KEY: self._key.hex(),
            LIFELINE: str(self._lifeline[0]),
        }
        threading.Thread(target=self._accept, daemon=True).start()
        # A group of its own: what it has started ends with it, also what has not learnt yet to die with its parent.
        self._process = subprocess.Popen(
            self._command, env=environment, start_new_session=True, pass_fds=self._lifeline[:1]
        )
        until = time.monotonic() + start_s
        while not self._is_up():
            self.check()
            if time.monotonic() > until:
                raise TargetError(f"SGLang is not up after {start_s:.0f} s; its log above says how far it came")
            time.sleep(POLL_S)
        if not self.proofs:
            raise TargetError(
                "SGLang is up, but none of its processes has proven that the plugin is active, so a plan would perturb "
                "nothing; its log above says why"
            )

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=HEALTH_S).status_code == 200
        except httpx.HTTPError:
            return False

    def check(self) -> None:
        """Raise TargetError when the server has ended."""
        assert self._process is not None, "start comes first"
        code = self._process.poll()
        if code is not None:
            when = "" if self.proofs else ", and none of its processes had proven that the plugin is active"
            raise TargetError(f"SGLang has ended with exit code {code}{when}; its log above says why")

    def use(self, plan: Plan) -> tuple[Counts, ...]:
        """Put a plan in force and return the counts of each proven process: all 0."""
        return self._ask_processes(msgspec.json.encode(plan))

    def counts(self) -> tuple[Counts, ...]:
        """Return the counts of each proven process."""
        return self._ask_processes(b"")

    def stop(self) -> None:
        """End the server with all that it has started, by force what takes too long."""
        self._stopped = True
        with suppress(OSError):  # closing alone would leave `_accept` waiting, and the port open with it
            socket.create_connection(self._listener.address).close()
        self._listener.close()
        if self._process is not None:
            try:
                self._process.terminate()
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with suppress(ProcessLookupError):  # all have ended
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        with self._lock:
            for _, connection in self._proven:
                connection.close()
        for end in self._lifeline:
            os.close(end)
        self._folder.cleanup()

    def _ask_processes(self, message: bytes) -> tuple[Counts, ...]:
        answers = []
        with self._lock:
            for proof, connection in self._proven:
                try:
                    connection.send_bytes(message)
                    if not connection.poll(ANSWER_S):
                        connection.close()  # a late answer would be taken for that to the next message
                        raise TargetError(f"process {proof.pid} of SGLang has not answered within {ANSWER_S:.0f} s")
                    answers.append(msgspec.json.decode(connection.recv_bytes(), type=Counts))
                except (EOFError, OSError) as error:
                    raise TargetError(f"process {proof.pid} of SGLang is gone ({error}); its log says why") from error
        return tuple(answers)

    def _accept(self) -> None:
        """Take the proofs of the server's processes, one connection each, and answer each once it counts."""
        while not self._stopped and len(self._proven) < PROCESSES_MAX:
            try:
                connection = self._listener.accept()
                proof = msgspec.json.decode(connection.recv_bytes(), type=Proof)
            except (EOFError, OSError, AuthenticationError, msgspec.MsgspecError):
                continue  # a connection of another program, or the listener was closed
            with self._lock, suppress(OSError):  # a process that has ended shows at the next message to it
                self._proven.append((proof, connection))
                connection.send_bytes(b"")


def url_of(args: Sequence[str]) -> str:
    """Return where a server with these arguments listens."""
    given = dict(zip(args, args[1:], strict=False)) | dict(arg.split("=", 1) for arg in args if "=" in arg)
    return f"http://{given.get('--host', '127.0.0.1')}:{given.get('--port', '30000')}"


def write_plugin(folder: Path) -> None:
    """Write what makes a folder on the module path our plugin, with stand-ins for packages that are not there."""
    info = folder / f"{PLUGIN}_sglang-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}-sglang\nVersion: 0\n")
    entry = f"{PLUGIN} = repro.engines.sglang.server.plugin:register"
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{entry}\n")
    for package in absent.PACKAGES:
        if importlib.util.find_spec(package) is None:
            text = f'from repro.engines.sglang.server.absent import stand_in\n\nstand_in("{package}")\n'
            (folder / package).mkdir()
            (folder / package / "__init__.py").write_text(text)
    for path, names in absent.MODULES.items():
        package, _, module = path.partition(".")
        if importlib.util.find_spec(package) is None:
            lines = [f'{name} = placeholder("{path}.{name}")' for name in names]
            text = "\n".join(("from repro.engines.sglang.classes.placeholders import placeholder", "", *lines, ""))
            (folder / package).mkdir()
            (folder / package / "__init__.py").write_text("")
            (folder / package / f"{module}.py").write_text(text)


def control(server: SglangServer) -> ThreadingHTTPServer:
    """Return the control of a server on a free port of this machine; its `serve_forever` answers."""

    class Control(BaseHTTPRequestHandler):
        timeout = CONTROL_S

        def do_POST(self) -> None:  # noqa: N802  http.server's name
            length = self.headers.get("content-length") or "0"
            if self.path != "/plan" or not re.fullmatch("[0-9]{1,7}", length) or int(length) > PLAN_BYTES_MAX:
                return self._answer(404, {"error": "POST /plan takes a TOML text of at most 1 MiB"})
            try:
                plan = read(self.rfile.read(int(length)).decode("utf-8", "replace"), "plan")
                self._answer(200, {"processes": server.use(plan)})
            except ScenarioError as error:
                self._answer(400, {"error": str(error)})
            except TargetError as error:
                self._answer(502, {"error": str(error)})

        def do_GET(self) -> None:  # noqa: N802  http.server's name
            if self.path != "/counts":
                return self._answer(404, {"error": "GET /counts, or POST /plan"})
            try:
                self._answer(200, {"processes": server.counts()})
            except TargetError as error:
                self._answer(502, {"error": str(error)})

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, status: int, reply: dict[str, object]) -> None:
            body = msgspec.json.encode(reply)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", 0), Control)
