"""Stopping a server on this machine leaves none of its processes."""

import signal
import subprocess
import sys

import pytest

from emulator import process

STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the child inherits
subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]).wait()
"""


@pytest.fixture
def signals_restored():
    """stop_session ignores signals from then on, because its program is about to exit."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_ignores_sigterm_is_killed_with_its_children(monkeypatch, signals_restored):
    monkeypatch.setattr(process, "STOP_SECONDS", 0.01)
    command = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        assert leader.stdout.readline() == "1\n"
        assert len(process.session(leader.pid)) == 2
        process.stop_session(leader)
    assert process.session(leader.pid) == []
    assert leader.returncode == -signal.SIGKILL


def test_a_server_that_exits_before_it_listens_has_no_address(tmp_path):
    (tmp_path / "log").write_text("a line\n")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as server:
        assert process.logged_url(server, tmp_path / "log") == "http://127.0.0.1:0"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        (tmp_path / "log").write_text("INFO server: listening on http://127.0.0.1:4711\n")
        assert process.logged_url(server, tmp_path / "log") == "http://127.0.0.1:4711"
        server.kill()
