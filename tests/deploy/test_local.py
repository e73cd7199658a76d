"""The local endpoint: SageMaker's interface in front of both stacks, and no process left behind."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import psutil
import pytest
import requests
from botocore.exceptions import ClientError

import local
from emulator import sagemaker_proxy
from support import run, serving


def session_of(pid: int) -> list[psutil.Process]:
    """The running processes of a session."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            pass
    return found


def containers_of(process: subprocess.Popen) -> list[int]:
    """The pids of local.py's children, each the leader of a session."""
    return [child.pid for child in psutil.Process(process.pid).children()]


@pytest.fixture
def runtime(endpoint):
    """boto3's client, with only its address changed."""
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=endpoint.url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )


def a_picture(project: Path) -> bytes:
    return sorted((project / "train" / "pictures").iterdir())[0].read_bytes()


def test_boto3_gets_an_answer(endpoint, runtime):
    reply = runtime.invoke_endpoint(
        EndpointName="any",
        Body=a_picture(endpoint.project),
        ContentType="image/jpeg",
        CustomAttributes="top_k=2",
    )
    assert reply["ContentType"] == "application/json"
    assert len(json.loads(reply["Body"].read())["predictions"]) == 2


def test_boto3_raises_the_containers_error_as_sagemakers_model_error(runtime):
    with pytest.raises(ClientError) as caught:
        runtime.invoke_endpoint(EndpointName="any", Body=b"x", ContentType="text/plain")
    reply = caught.value.response
    assert reply["Error"]["Code"] == "ModelError"
    assert reply["OriginalStatusCode"] == 415
    assert json.loads(reply["OriginalMessage"])["error"] == "unsupported_type"
    assert reply["ResponseMetadata"]["HTTPStatusCode"] == 424


def test_only_the_headers_that_sagemaker_forwards_reach_the_container():
    """A container that answers with the headers that it was sent."""

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
            self.send_response(200)
            self.send_header("X-Amzn-SageMaker-Custom-Attributes", "a=1")
            self.send_header("X-Other", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    echo = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=echo.serve_forever, args=[0.05], daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/invocations"
    sent = {
        "X-Other": "1",
        "Cookie": "a=1",
        "Content-Type": "image/png",
        "X-Amzn-SageMaker-Custom-Attributes": "b=2",
    }
    with sagemaker_proxy.proxy(listener, f"http://127.0.0.1:{echo.server_port}", "plain"):
        reply = requests.post(url, b"x", headers=sent, timeout=10)
    echo.shutdown()
    echo.server_close()
    received = reply.json()
    assert (received["content-type"], received["x-amzn-sagemaker-custom-attributes"]) == ("image/png", "b=2")
    assert not {"x-other", "cookie"} & set(received)
    assert reply.headers["x-amzn-sagemaker-custom-attributes"] == "a=1"
    assert "x-other" not in reply.headers


def test_real_photographs_have_identical_answers_from_both_stacks(endpoint, ray_endpoint, pets):
    for photo in pets[:40]:
        data = photo.read_bytes()
        one, other = (
            requests.post(f"{e.url}/invocations", data, timeout=60) for e in (endpoint, ray_endpoint)
        )
        assert one.status_code == 200
        assert one.content == other.content


@pytest.mark.parametrize(
    "signs",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGTERM, signal.SIGTERM]],
    ids=["ctrl-c", "sigterm", "closed terminal", "several signals"],
)
def test_every_signal_stops_all_processes(project, signs):
    with serving(project, "plain") as endpoint:
        containers = containers_of(endpoint.process)
        for sign in signs:
            endpoint.process.send_signal(sign)
            time.sleep(0.05)
        assert endpoint.process.wait(30) == 0
    assert containers
    assert all(session_of(pid) == [] for pid in containers)


def test_a_server_that_exits_by_itself_is_exit_code_3(project):
    with serving(project, "plain") as endpoint:
        (container,) = containers_of(endpoint.process)
        os.kill(container, signal.SIGKILL)
        assert endpoint.process.wait(30) == 3


def test_ctrl_c_stops_all_processes_of_ray(project):
    with serving(project, "ray") as endpoint:
        (container,) = containers_of(endpoint.process)
        assert len(session_of(container)) > 5
    assert session_of(container) == []


def test_the_model_folder_is_not_changed(endpoint):
    assert not list((endpoint.project / "model").rglob("__pycache__"))


@pytest.mark.parametrize("code", [0, 1, 3])
def test_with_a_command_it_serves_until_that_exits_and_has_its_exit_code(project, code):
    program = f"import os, sys; print(os.environ['AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME']); sys.exit({code})"
    done = run(
        "deploy/local.py", "--model", project / "model", "--port", 0, sys.executable, "-c", program, code=code
    )
    assert "http://127.0.0.1:" in done.stdout.splitlines()[-1]


def test_real_credentials_do_not_reach_the_command(project):
    program = "import os; print(sorted(v for k, v in os.environ.items() if k.startswith('AWS_')))"
    done = run(
        *("deploy/local.py", "--model", project / "model", "--port", 0, "--", sys.executable, "-c", program),
        env=os.environ | {"AWS_SECRET_ACCESS_KEY": "the-real-one", "AWS_PROFILE": "work"},
    )
    assert "the-real-one" not in done.stdout
    assert "work'" not in done.stdout


@pytest.fixture
def rejected(capsys):
    """local.py's error for these flags, in this process; its signal handlers are removed again."""
    signs = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {sign: signal.getsignal(sign) for sign in signs}

    def rejected(*words: object) -> str:
        assert local.main([*map(str, words)]) == 2
        return capsys.readouterr().err

    yield rejected
    for sign, handler in handlers.items():
        signal.signal(sign, handler)


def test_a_busy_port_is_a_sentence(tmp_path, rejected):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        said = rejected("--model", tmp_path, "--port", port)
    assert said.startswith(f"error: port {port} could not be opened")


@pytest.mark.parametrize("port", [99999, -1])
def test_a_port_that_cannot_exist_is_a_sentence(tmp_path, rejected, port):
    assert rejected("--model", tmp_path, f"--port={port}").startswith(
        f"error: port {port} could not be opened"
    )


def test_a_missing_model_is_a_sentence(tmp_path, rejected):
    assert "run `invoke package` first" in rejected("--model", tmp_path / "none", "--port", 0)


def test_a_command_that_does_not_exist_is_a_sentence(project):
    done = run("deploy/local.py", "--model", project / "model", "--port", 0, "no-such-command", code=2)
    assert "no-such-command could not be started" in done.stderr


def test_a_model_that_does_not_load_shows_why(project, tmp_path):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    (model / "model.onnx").write_bytes(b"x")
    start = time.monotonic()
    done = run("deploy/local.py", "--model", model, "--port", 0, code=1)
    assert "package it again" in done.stderr
    assert time.monotonic() - start < 60
