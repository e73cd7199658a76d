"""The plain server for the tests: as a process, or in a thread of the test's own process."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

import inference
import server

WAIT_SECONDS = 60
# server.py with changes. Code in it waits at gate["..."] until the test calls Process.open("...").
PROGRAM = """
import collections, os, sys, threading
sys.path.insert(0, {code!r})
import inference, server
gate = collections.defaultdict(threading.Event)
def read_gates():
    while names := os.read(0, 1000):
        for name in names.decode().split():
            gate[name].set()
threading.Thread(target=read_gates, daemon=True).start()
{changes}
raise SystemExit(server.main(sys.argv[1:]))
"""
GATED_LOAD = """
def load_at_gate(folder, load=server.model_fn):
    gate["load"].wait()
    return load(folder)
server.model_fn = load_at_gate
"""
GATED_PREDICT = """
def predict_at_gate(batch, model, predict=inference.predict_fn):
    print("predicting", flush=True)
    gate["predict"].wait()
    return predict(batch, model)
def load_and_change(folder, load=server.model_fn):
    model = load(folder)  # its warm-up needs no gate
    inference.predict_fn = predict_at_gate
    return model
server.model_fn = load_and_change
"""


class Log:
    """The output of a process, read by a thread so that its pipe never fills."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self.read, args=[process.stdout], daemon=True)
        self.reader.start()

    def read(self, stdout: Iterator[str]) -> None:
        """Collect lines until the process ends."""
        for line in stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def wait_for(self, text: str, count: int = 1) -> str:
        """The `count`th line that contains `text`."""

        def matching() -> list[str]:
            return [line for line in self.lines if text in line]

        with self.changed:
            logged = self.changed.wait_for(lambda: len(matching()) >= count, WAIT_SECONDS)
        assert logged, f"{count} lines with {text!r} are not in:\n{''.join(self.lines)}"
        return matching()[count - 1]

    def text(self) -> str:
        """Everything, once the process has ended."""
        self.reader.join(WAIT_SECONDS)
        return "".join(self.lines)


class Process:
    """A running server.py: its address, its log, and the gates of PROGRAM."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process, self.log = process, Log(process)
        self.url = self.log.wait_for("INFO server: listening on ").split()[-1]

    def open(self, gate: str) -> None:
        """Let code pass that waits at a gate."""
        assert self.process.stdin
        self.process.stdin.write(f"{gate}\n")
        self.process.stdin.flush()


@contextmanager
def running(model: Path, changes: str | None = None) -> Iterator[Process]:
    """The model's server.py (with changes: PROGRAM) as a process on a free port, killed at the end."""
    script = [str(model / "code" / "server.py")]
    if changes is not None:
        script = ["-c", PROGRAM.format(code=str(model / "code"), changes=changes)]
    command = [sys.executable, "-B", *script, "--model", str(model), "--port", "0"]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=both, text=True) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


@contextmanager
def in_thread(model: inference.Model | None) -> Iterator[str]:
    """The server in a thread of this process, where a test can change its parts; yields its address."""
    app, loading = server.application(), Future[inference.Model | None]()
    loading.set_result(model)
    listener = server.bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    uvicorn_server = server.http_server(app, loading)
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        uvicorn_server.should_exit = True
        thread.join()


def wait_for_ping(url: str, *statuses: int) -> int:
    """The first of these statuses that /ping answers with; 0 is no connection."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            status = requests.get(f"{url}/ping", timeout=5).status_code
        except requests.ConnectionError:
            status = 0
        if status in statuses:
            return status
        time.sleep(0.01)
    raise AssertionError(f"/ping was none of {statuses} within {WAIT_SECONDS} s")


def a_picture(project: Path) -> bytes:
    """A validation picture of the project."""
    return sorted((project / "train" / "pictures").iterdir())[0].read_bytes()


def post(url: str, body: bytes, **headers: str) -> requests.Response:
    """Send one picture."""
    return requests.post(f"{url}/invocations", body, headers=headers, timeout=WAIT_SECONDS)


@contextmanager
def expecting(url: str, length: int) -> Iterator[socket.socket]:
    """A connection on which the server has answered "100 Continue" and waits for the body."""
    address = "127.0.0.1", int(url.rpartition(":")[2])
    with socket.create_connection(address, timeout=WAIT_SECONDS) as caller:
        head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        caller.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            received += caller.recv(1)
        assert received.startswith(b"HTTP/1.1 100 ")
        yield caller


def gated_predict(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Semaphore, threading.Event]:
    """Let predictions in this process wait: a count of those that have started, and the gate to set."""
    started, gate, predict = threading.Semaphore(0), threading.Event(), inference.predict_fn

    def predict_at_gate(batch: inference.Batch, model: inference.Model) -> inference.Prediction:
        started.release()
        assert gate.wait(WAIT_SECONDS)
        return predict(batch, model)

    monkeypatch.setattr(inference, "predict_fn", predict_at_gate)
    return started, gate
