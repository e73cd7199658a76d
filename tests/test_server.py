"""The plain server as a process: honest about when it is ready, and polite when it ends."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
from conftest import ROOT

SLOW = """
import sys, time
sys.path.insert(0, {code!r})
import inference, server
load, predict = inference.model_fn, inference.predict_fn
def slow_load(folder):
    time.sleep(1.5)
    return load(folder)
def slow_predict(batch, model):
    time.sleep(1)
    return predict(batch, model)
server.model_fn, inference.predict_fn = slow_load, slow_predict
raise SystemExit(server.main(sys.argv[1:]))
"""


def start(model: Path, port: int, script: list[str] | None = None) -> subprocess.Popen:
    script = script or [str(model / "code" / "server.py")]
    command = [sys.executable, "-B", *script, "--model", model, "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for_ping(url: str, *statuses: int) -> int:
    """The first of these statuses that /ping has."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            status = requests.get(f"{url}/ping", timeout=2).status_code
        except requests.ConnectionError:
            status = 0
        if status in statuses:
            return status
        time.sleep(0.02)
    raise AssertionError(f"no {statuses} within 30 s")


def test_ping_and_invocations_are_503_until_the_model_has_answered_once(project, port):
    slow = SLOW.format(code=str(project / "model" / "code"))
    process = start(project / "model", port, ["-c", slow])
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_for_ping(url, 200, 503) == 503
        early = requests.post(f"{url}/invocations", b"x", timeout=5)
        assert (early.status_code, early.json()["error"]) == (503, "not_loaded")
        wait_for_ping(url, 200)
        assert requests.post(f"{url}/invocations", b"x", timeout=5).status_code == 400
    finally:
        process.terminate()
        process.communicate()


def test_a_request_in_flight_is_answered_after_sigterm(project, port):
    slow = SLOW.format(code=str(project / "model" / "code"))
    process = start(project / "model", port, ["-c", slow])
    url = f"http://127.0.0.1:{port}"
    wait_for_ping(url, 200)
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    statuses = []
    asking = threading.Thread(
        target=lambda: statuses.append(requests.post(f"{url}/invocations", picture, timeout=20).status_code)
    )
    asking.start()
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    asking.join()
    process.communicate(timeout=20)
    assert statuses == [200]


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(project, tmp_path, port):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    with open(model / "model.onnx", "ab") as file:
        file.write(b"x")
    process = start(model, port)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "package it again" in output
    assert "Traceback" not in output


def test_ping_answers_at_once_while_pictures_are_being_read(endpoint):
    """64 requests wait for a core; the health check, which SageMaker gives 2 s, must not."""
    picture = sorted((endpoint.project / "train" / "pictures").iterdir())[0].read_bytes()
    statuses = []

    def ask() -> None:
        statuses.append(requests.post(f"{endpoint.url}/invocations", picture, timeout=60).status_code)

    asking = [threading.Thread(target=ask) for _ in range(64)]
    for thread in asking:
        thread.start()
    assert requests.get(f"{endpoint.url}/ping", timeout=2).status_code == 200
    for thread in asking:
        thread.join()
    assert statuses == [200] * 64


def test_the_server_in_the_archive_is_the_one_in_the_repository(project):
    for file in (ROOT / "serve").glob("*.py"):
        assert (project / "model" / "code" / file.name).read_bytes() == file.read_bytes()
