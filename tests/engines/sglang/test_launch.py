"""A server that has no HiCache, that dies, or that does not prove the plugin is refused; no sglang is needed here."""

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from repro.base.errors import ScenarioError, TargetError, UsageError
from repro.cli import app
from repro.engines.sglang import pinned
from repro.engines.sglang.server import launch, threads
from repro.engines.sglang.server.launch import SglangServer, control, url_of, write_plugin
from repro.engines.sglang.server.switches import Switches, read

HICACHE = "--enable-hierarchical-cache"
SLOW = '[[fault]]\nat = "loadback.copy_layer"\ndo = { kind = "delay", us = 5 }\n'
WITHOUT_PLUGIN = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "version", lambda name: pinned.VERSION)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return str(found.getsockname()[1])


def test_a_server_without_hicache_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="add --enable-hierarchical-cache"):
        SglangServer(["--model-path", "x"])
    result = CliRunner().invoke(app, ["sglang", "--", "--model-path", "x"])
    assert result.exit_code == 2 and "there is nothing to perturb" in result.stderr


def test_without_the_pinned_sglang_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    for found, said in ((absent, "which is not installed"), (lambda name: "0.5.12", "and 0.5.12 is installed")):
        monkeypatch.setattr(pinned, "version", found)
        result = CliRunner().invoke(app, ["sglang", "--", HICACHE])
        assert result.exit_code == 2 and said in result.stderr and "glm5-repro[sglang-server]" in result.stderr


@pytest.mark.parametrize(("allowed", "refused"), [("other", True), ("other, repro", False), ("", False)])
def test_a_list_of_plugins_that_keeps_ours_out_is_refused(
    allowed: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", allowed)
    if refused:
        with pytest.raises(UsageError, match="add ,repro to it"):
            SglangServer([HICACHE])
    else:
        SglangServer([HICACHE]).stop()


def test_a_server_that_dies_is_told_with_its_exit_code() -> None:
    server = SglangServer([HICACHE], (sys.executable, "-c", "raise SystemExit(7)"))
    try:
        with pytest.raises(TargetError, match="exit code 7, and none of its processes had proven") as caught:
            server.start()
        assert caught.value.word.exit_code == 4
    finally:
        server.stop()


def test_a_server_that_is_up_without_the_plugin_is_refused() -> None:
    server = SglangServer(["--port", free_port(), HICACHE], (sys.executable, "-c", WITHOUT_PLUGIN))
    try:
        with pytest.raises(TargetError, match="none of its processes has proven"):
            server.start()
    finally:
        server.stop()


def test_a_server_that_does_not_come_up_is_given_up() -> None:
    server = SglangServer(["--port", free_port(), HICACHE], (sys.executable, "-c", "import time; time.sleep(60)"))
    try:
        with pytest.raises(TargetError, match="not up after 0 s"):
            server.start(start_s=0)
    finally:
        server.stop()


def test_what_a_server_has_started_ends_with_it_and_nobody_listens_any_more(tmp_path: Path) -> None:
    told = tmp_path / "child"
    with_child = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=subprocess.PIPE)\n"
        f"pathlib.Path({str(told)!r}).write_text(str(child.pid))\n"
        "raise SystemExit(7)\n"
    )
    server = SglangServer(["--port", free_port(), HICACHE], (sys.executable, "-c", with_child))
    address = server._listener.address
    try:
        with pytest.raises(TargetError, match="exit code 7"):
            server.start()
        child = os.pidfd_open(int(told.read_text()))  # it runs
    finally:
        server.stop()
    assert select.select([child], [], [], 10)[0], "the child still runs"
    os.close(child)
    with pytest.raises(ConnectionRefusedError):
        for _ in range(100):  # the thread that accepts closes the port when it wakes up
            socket.create_connection(address).close()


PROVEN = (
    """
import os, sys, time, msgspec
from multiprocessing.connection import Client
from repro.engines.sglang.server.plugin import ADDRESS, KEY, Proof
host, _, port = os.environ[ADDRESS].rpartition(":")
connection = Client((host, int(port)), authkey=bytes.fromhex(os.environ[KEY]))
connection.send_bytes(msgspec.json.encode(Proof(os.getpid(), "none", "0")))
connection.recv_bytes()
"""
    + WITHOUT_PLUGIN
)


def test_a_process_that_does_not_answer_is_told_and_the_control_bounds_what_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "ANSWER_S", 0.05)
    server = SglangServer(["--port", free_port(), HICACHE], (sys.executable, "-c", PROVEN))
    try:
        server.start()
        with control(server) as controls:
            threading.Thread(target=controls.serve_forever, daemon=True).start()
            at = f"http://127.0.0.1:{controls.server_port}"
            answers = [httpx.get(f"{at}/counts") for _ in range(2)]
            assert [answer.status_code for answer in answers] == [502, 502]
            assert "has not answered within" in answers[0].text and "is gone" in answers[1].text
            for length in ("-1", "x", "1048577", "9" * 5000):
                refusing = http.client.HTTPConnection("127.0.0.1", controls.server_port, timeout=10)
                refusing.putrequest("POST", "/plan")
                refusing.putheader("content-length", length)
                refusing.endheaders()
                refused = refusing.getresponse()
                assert refused.status == 404 and b"at most 1 MiB" in refused.read()
            controls.shutdown()
    finally:
        server.stop()


def test_sigterm_ends_the_launcher_as_ctrl_c_does() -> None:
    script = (
        "import sys\n"
        "from repro.engines.sglang import pinned\n"
        "from repro.engines.sglang.server import command, launch\n"
        "pinned.version = lambda name: pinned.VERSION\n"
        "class Server(launch.SglangServer):\n"
        "    def __init__(self, args): super().__init__(args, (sys.executable, '-c', 'import time; time.sleep(600)'))\n"
        "    def check(self): print(self._process.pid, flush=True)\n"
        "command.SglangServer = Server\n"
        f"command.run_sglang({['--port', free_port(), HICACHE]!r}, print)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    child = os.pidfd_open(int(launcher.stdout.readline()))
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 0
    assert select.select([child], [], [], 10)[0], "the server still runs"
    os.close(child)


def test_a_launcher_that_is_killed_leaves_no_server_behind(tmp_path: Path) -> None:
    server = (
        "import subprocess, sys, time\n"
        "from repro.engines.sglang.server import plugin\n"
        "plugin.end_with_launcher()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    script = (
        "import sys\n"
        "from repro.engines.sglang import pinned\n"
        "from repro.engines.sglang.server.launch import SglangServer\n"
        "pinned.version = lambda name: pinned.VERSION\n"
        f"SglangServer({['--port', free_port(), HICACHE]!r}, (sys.executable, '-c', {server!r})).start()\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    child = os.pidfd_open(int(launcher.stdout.readline()))
    assert not select.select([child], [], [], 0)[0]
    launcher.kill()
    launcher.wait()
    assert select.select([child], [], [], 10)[0], "what the server has started still runs"
    assert launcher.stdout.read() == "", "the server still holds the pipe"
    os.close(child)


@pytest.mark.parametrize(
    "args, url",
    [
        ([], "http://127.0.0.1:30000"),
        (["--port", "5", "--host", "h"], "http://h:5"),
        (["--port=5"], "http://127.0.0.1:5"),
    ],
)
def test_a_server_is_asked_where_its_arguments_say(args: list[str], url: str) -> None:
    assert url_of(args) == url


def test_the_plugin_and_the_stand_ins_are_found_on_the_module_path(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    script = (
        "from importlib.metadata import entry_points\n"
        "[plugin] = entry_points(group='sglang.srt.plugins')\n"
        "assert callable(plugin.load())\n"
        "import triton, triton.language as tl, sgl_kernel.kvcacheio\n"
        "assert triton.jit(len) is len and triton.autotune(configs=[])(len) is len\n"
        "assert not isinstance(3, tl.constexpr)\n"
        "try: sgl_kernel.kvcacheio.transfer_kv_direct()\n"
        "except NotImplementedError as error: print(error)\n"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "sgl_kernel.kvcacheio.transfer_kv_direct has no stand-in" in done.stdout


def test_a_plan_is_read_as_a_scenario_is() -> None:
    plan = read('defects = ["hicache_wrapper_no_wait"]\n' + SLOW, "plan")
    switches = Switches()
    assert switches.delay_s("loadback.copy_layer", "load", -1) == 0.0 and switches.waits(loaded=False)
    switches.use(plan)
    assert switches.delay_s("loadback.copy_layer", "load", -1) == 5e-6
    assert not switches.waits(loaded=False) and not switches.waits(loaded=True)
    counts = switches.counts()
    assert (counts.waits, counts.left_out, counts.early) == (0, 2, 1)
    assert counts.faults["loadback.copy_layer.delay"].fired == 1


@pytest.mark.parametrize(
    "text, told",
    [
        ('defects = ["sched_double_free"]', 'nearest: "hicache_wrapper_no_wait"'),
        (SLOW.replace("delay", "reorder").replace(", us = 5", ""), 'takes do.kind = "delay"'),
        (SLOW.replace("loadback.copy_layer", "forward.index"), "at loadback.copy_layer and writeback.copy_layer"),
        (SLOW.replace("copy_layer", "copy"), 'nearest: "loadback.copy_layer"'),
        ("sessions = 3", "sessions"),
        ("[[", "not valid TOML"),
    ],
)
def test_what_a_running_server_cannot_do_is_refused_with_a_sentence(text: str, told: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        read(text, "plan")
    assert told in str(caught.value)


def test_a_wait_binds_to_the_latest_record_and_one_never_recorded_holds_nobody() -> None:
    stream, other, event, done = threads.Stream(), threads.Stream(), threads.Event(), threads.Event()
    stream.wait_event(event)
    stream.synchronize()
    gate = threads.Event()
    gate.record(other)
    gate.synchronize()
    held = []
    release = threading.Event()
    other.put(release.wait)
    event.record(other)
    stream.wait_event(event)
    stream.put(lambda: held.append("after"))
    done.record(stream)
    assert not event.query() and not held
    event.record(stream)  # moves the event, not who waits for it already
    assert not held
    release.set()
    done.synchronize()
    assert held == ["after"]
