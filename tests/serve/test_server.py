"""The plain server as a process: honest about when it is ready, and polite when it ends."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from support import ROOT

SLOW = """
import sys, time
sys.path.insert(0, {code!r})
import inference, server
load, predict = inference.model_fn, inference.predict_fn
def slow_load(folder):
    time.sleep(1.5)
    model = load(folder)
    inference.predict_fn = slow_predict
    return model
def slow_predict(batch, model):
    print("predicting", flush=True)
    time.sleep(1)
    return predict(batch, model)
server.model_fn = slow_load
raise SystemExit(server.main(sys.argv[1:]))
"""


@contextmanager
def running(model: Path, port: int, program: str = "") -> Iterator[subprocess.Popen]:
    """The model's server.py (or a `program` round it) as a process, until the block ends."""
    script = ["-c", program.format(code=str(model / "code"))] if program else [model / "code" / "server.py"]
    command = [sys.executable, "-B", *script, "--model", model, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def port() -> int:
    return free_port()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def a_picture(project: Path) -> bytes:
    return sorted((project / "train" / "pictures").iterdir())[0].read_bytes()


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
    url = f"http://127.0.0.1:{port}"
    with running(project / "model", port, SLOW):
        assert wait_for_ping(url, 200, 503) == 503
        early = requests.post(f"{url}/invocations", b"x", timeout=5)
        assert (early.status_code, early.json()["error"]) == (503, "not_loaded")
        assert early.headers["Retry-After"] == "1"
        wait_for_ping(url, 200)
        assert requests.post(f"{url}/invocations", b"x", timeout=5).status_code == 400


def test_a_request_in_flight_is_answered_after_sigterm(project, port):
    url = f"http://127.0.0.1:{port}"
    with running(project / "model", port, SLOW) as process, ThreadPoolExecutor() as pool:
        wait_for_ping(url, 200)
        asking = pool.submit(requests.post, f"{url}/invocations", a_picture(project), timeout=20)
        assert process.stdout.readline().startswith("INFO server: ready")
        assert process.stdout.readline() == "predicting\n"
        process.send_signal(signal.SIGTERM)
        assert asking.result().status_code == 200
        process.wait(20)


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(project, tmp_path, port):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    with open(model / "model.onnx", "ab") as file:
        file.write(b"x")
    with running(model, port) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "package it again" in output
    assert "Traceback" not in output


def test_ping_answers_at_once_while_pictures_are_being_read(project, port):
    """32 requests of a second each wait for a core; the health check, which SageMaker gives 2 s, must not."""
    url = f"http://127.0.0.1:{port}"
    with running(project / "model", port, SLOW) as process, ThreadPoolExecutor(32) as pool:
        wait_for_ping(url, 200)
        for _ in range(32):
            pool.submit(requests.post, f"{url}/invocations", a_picture(project), timeout=60)
        while process.stdout.readline() != "predicting\n":
            pass
        assert requests.get(f"{url}/ping", timeout=2).status_code == 200


def test_a_failure_of_ours_is_500_with_an_id_that_the_log_repeats(project, port):
    url = f"http://127.0.0.1:{port}"
    failing = SLOW.replace("time.sleep(1)\n", "raise OSError('secret')\n")
    with running(project / "model", port, failing) as process:
        wait_for_ping(url, 200)
        mine = {"X-Amzn-SageMaker-Inference-Id": "mine"}
        reply = requests.post(f"{url}/invocations", a_picture(project), headers=mine, timeout=20)
        assert requests.get(f"{url}/ping", timeout=20).status_code == 503  # the warm-up fails as well
        process.terminate()
        log, _ = process.communicate(timeout=20)
    assert (reply.status_code, reply.json()["error"]) == (500, "internal")
    assert "secret" not in reply.text
    assert reply.json()["message"].endswith("under mine")
    assert "request mine failed" in log
    assert "OSError: secret" in log


def test_each_request_is_a_line_of_json_without_what_was_asked(project, port):
    url = f"http://127.0.0.1:{port}/invocations"
    picture, address = a_picture(project), {"url": "http://10.0.0.1/cat.jpg?token=secret"}
    with running(project / "model", port) as process:
        wait_for_ping(f"http://127.0.0.1:{port}", 200)
        requests.post(url, picture, headers={"X-Amzn-SageMaker-Inference-Id": "mine"}, timeout=20)
        requests.post(url, json=address, timeout=20)
        process.terminate()
        log, _ = process.communicate(timeout=20)
    one, other = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    assert (one["id"], one["status"], one["bytes"]) == ("mine", 200, len(picture))
    assert 0 < one["ms"] < 20_000
    assert (other["status"], len(other["id"])) == (422, 12)
    assert "secret" not in log


def test_ping_is_200_after_a_failure_that_was_not_the_models(project, port):
    url = f"http://127.0.0.1:{port}"
    once = "inference.predict_fn = predict\n    raise OSError"
    with running(project / "model", port, SLOW.replace("time.sleep(1)\n", once + "\n")):
        wait_for_ping(url, 200)
        asked = [requests.post(f"{url}/invocations", a_picture(project), timeout=20) for _ in range(2)]
        assert [reply.status_code for reply in asked] == [500, 200]
        assert requests.get(f"{url}/ping", timeout=20).status_code == 200


def test_the_server_in_the_archive_is_the_one_in_the_repository(project):
    for file in (ROOT / "serve").glob("*.py"):
        assert (project / "model" / "code" / file.name).read_bytes() == file.read_bytes()
