"""The local endpoint: SageMaker's face before both stacks, and nothing left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import psutil
import pytest
import requests
from botocore.exceptions import ClientError
from conftest import run, serving


def session_of(pid: int) -> list[psutil.Process]:
    """The processes of one session that still live."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            pass
    return found


def containers_of(process: subprocess.Popen) -> list[int]:
    """The pids of local.py's children: each leads a session of its own."""
    return [child.pid for child in psutil.Process(process.pid).children()]


@pytest.fixture
def runtime(endpoint):
    """boto3's client, with nothing but the address changed."""
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=endpoint.url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )


def a_picture(project: Path) -> bytes:
    return sorted((project / "train" / "pictures").iterdir())[0].read_bytes()


def test_boto3_is_answered(endpoint, runtime):
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


def test_only_the_headers_that_sagemaker_passes_on_reach_the_container(endpoint):
    picture = a_picture(endpoint.project)
    reply = requests.post(
        f"{endpoint.url}/invocations",
        picture,
        headers={"X-Other": "1", "Content-Type": "image/jpeg"},
        timeout=30,
    )
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"


def test_real_photographs_have_identical_answers_from_both_stacks(endpoint, ray_endpoint, pets):
    for photo in pets[:40]:
        data = photo.read_bytes()
        one, other = (
            requests.post(f"{e.url}/invocations", data, timeout=60) for e in (endpoint, ray_endpoint)
        )
        assert one.status_code == 200
        assert one.content == other.content


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_with_0_and_leave_no_process(project, sign):
    with serving(project, "plain") as endpoint:
        containers = containers_of(endpoint.process)
        endpoint.process.send_signal(sign)
        assert endpoint.process.wait(30) == 0
    assert containers
    assert all(session_of(pid) == [] for pid in containers)


def test_ray_leaves_no_process_either(project):
    with serving(project, "ray") as endpoint:
        (container,) = containers_of(endpoint.process)
        assert len(session_of(container)) > 5
    assert session_of(container) == []


def test_the_model_folder_stays_what_was_packaged(endpoint):
    assert not list((endpoint.project / "model").rglob("__pycache__"))


@pytest.mark.parametrize("code", [0, 1, 3])
def test_with_a_command_it_serves_until_that_ends_and_has_its_exit_code(project, code):
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


def test_a_busy_port_is_a_sentence(project):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = run("deploy/local.py", "--model", project / "model", "--port", port, code=2)
    assert done.stderr.startswith(f"error: port {port} cannot be had")


def test_a_missing_model_is_a_sentence(tmp_path):
    done = run("deploy/local.py", "--model", tmp_path / "none", "--port", 0, code=2)
    assert "run `invoke package` first" in done.stderr


def test_a_command_that_does_not_exist_is_a_sentence(project):
    done = run("deploy/local.py", "--model", project / "model", "--port", 0, "no-such-command", code=2)
    assert "no-such-command cannot be run" in done.stderr


def test_a_model_that_does_not_load_shows_why(project, tmp_path):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    (model / "model.onnx").write_bytes(b"x")
    start = time.monotonic()
    done = run("deploy/local.py", "--model", model, "--port", 0, code=1)
    assert "package it again" in done.stderr
    assert time.monotonic() - start < 60
