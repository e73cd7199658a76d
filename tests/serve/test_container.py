"""The container image of serve/Dockerfile: its entry point, its content, and how it runs on SageMaker."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from PIL import Image
from plain_server import a_picture, expecting, wait_for_ping

import container
from common import CommandError
from ecr import docker_build
from emulator import docker_run
from support import LABELS, ROOT, run, serving

SERVE = ROOT / "serve"
in_docker = pytest.mark.xdist_group("docker")
PINS = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def start(*arguments: str, script: Path = SERVE / "container.py", **environment: str):
    """Run container.py as the entry point, to its end."""
    command = [sys.executable, "-B", str(script), *arguments]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def refused(monkeypatch):
    """Call container.main in this process; returns its error, which comes before it changes the user."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(container.os, "setuid", lambda _: pytest.fail("it goes on"))

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            container.main(list(arguments))
        return str(caught.value)

    return call


# --- without Docker


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["serve", "now"]], ids=["nothing", "train", "two words"]
)
def test_its_only_command_is_serve(refused, arguments):
    assert refused(*arguments).startswith("error: this image has one command, serve, not ")


def test_an_archive_without_code_is_one_sentence(tmp_path):
    done = start("serve", SM_MODEL_DIR=str(tmp_path), SERVE_CODE="archive")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "`invoke package` makes archives that have it" in done.stderr


def test_an_unknown_serve_code_is_one_sentence(refused, monkeypatch):
    monkeypatch.setenv("SERVE_CODE", "archiv")
    assert refused("serve") == "error: SERVE_CODE is image or archive, not 'archiv'"


@pytest.mark.parametrize(("setting", "runs"), [("", "image"), ("archive", "archive"), ("image", "image")])
def test_the_archives_code_runs_only_with_serve_code_archive(tmp_path, setting, runs):
    """Two servers that print their name and their arguments."""
    for folder in (image := tmp_path / "image", tmp_path / "model" / "code"):
        folder.mkdir(parents=True)
        name = "image" if folder == image else "archive"
        (folder / "server.py").write_text(f"import sys; print({name!r}, *sys.argv[1:])")
    shutil.copy(SERVE / "container.py", image)
    model = str(tmp_path / "model")
    # The user nobody cannot read pytest's own folders either.
    (tmp_path / "model" / "secret").touch(mode=0o600)
    given = {"SM_MODEL_DIR": model, "SERVE_CODE": setting, "SAGEMAKER_BIND_TO_PORT": "8123"}
    done = start("serve", script=image / "container.py", **given)
    last = done.stdout.splitlines()[-1]
    assert last == f"{runs} --model {model} --host 0.0.0.0 --port 8123"


def test_the_lock_of_the_image_has_what_serving_needs_in_the_versions_of_requirements_lock():
    text, whole = (SERVE / "requirements.lock").read_text(), (ROOT / "requirements.lock").read_text()
    pinned = dict(PINS.findall(text))
    assert {"numpy", "openvino", "pillow", "starlette", "uvicorn"} <= set(pinned)
    assert pinned.items() <= set(PINS.findall(whole))
    assert "://" not in text
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z])", text)[1:])


def test_the_base_image_is_pinned_by_its_digest():
    (base,) = re.findall(r"^ARG BASE=(\S+)$", (SERVE / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"public\.ecr\.aws/docker/library/python:3\.13-slim-\w+@sha256:[0-9a-f]{64}", base)


def test_the_images_tag_is_a_hash_of_its_content(tmp_path, monkeypatch):
    tag = docker_build.content_tag
    before = tag("amd64")
    assert before == tag("amd64")
    assert len({before, tag("arm64"), tag("amd64", "another:base")}) == 3
    shutil.copytree(SERVE, tmp_path / "serve")
    monkeypatch.setattr(docker_build, "SERVE_FOLDER", tmp_path / "serve")
    assert docker_build.content_tag("amd64") == before
    (tmp_path / "serve" / "notes.txt").write_text("the build does not read this")
    assert docker_build.content_tag("amd64") == before
    with open(tmp_path / "serve" / "server.py", "a") as file:
        file.write("# changed\n")
    assert docker_build.content_tag("amd64") != before


def test_the_build_reads_exactly_the_files_in_the_hash():
    """.dockerignore allows what build_files() hashes: others would change the image but not its tag."""
    _, *allowed = (SERVE / ".dockerignore").read_text().split()
    let_through = {file.name for rule in allowed for file in SERVE.glob(rule.removeprefix("!"))}
    assert let_through | {"Dockerfile", ".dockerignore"} == set(docker_build.build_files())


@pytest.mark.parametrize(
    ("instance", "memory", "flags"),
    [
        (None, None, []),
        (None, 2048, ["--memory", "2048m", "--memory-swap", "2048m"]),
        ("ml.c7i.large", None, ["--memory", "4096m", "--memory-swap", "4096m", "--cpus", "2"]),
        ("ml.m5.2xlarge", None, ["--memory", "32768m", "--memory-swap", "32768m", "--cpus", "4"]),
    ],
)
def test_the_container_is_as_large_as_on_aws_and_no_larger_than_docker_here(
    instance, memory, flags, monkeypatch
):
    if instance and not (ROOT / "cost").is_dir():
        pytest.skip("cost/, which knows the size of instances, is not here")
    monkeypatch.setattr(docker_build, "docker_cpus", lambda: 4)
    assert docker_run.size_flags(instance, memory) == flags


@pytest.mark.skipif(not (ROOT / "cost").is_dir(), reason="cost/ is not here")
def test_an_unknown_instance_type_is_one_sentence():
    text = "there is no instance type 'ml.c7i.lage' in prices.json: did you mean ml.c7i.large"
    with pytest.raises(CommandError, match=re.escape(text)):
        docker_run.size_flags("ml.c7i.lage", None)


def test_without_docker_it_is_one_sentence(project):
    nowhere = os.environ | {"DOCKER_HOST": "unix:///nowhere"}
    done = run("deploy/local.py", "--model", project / "model", "--port", 0, "--docker", code=3, env=nowhere)
    assert done.stderr == "error: no Docker engine responds: start one, or leave --docker out\n"


# --- in Docker


def in_image(*command: str) -> str:
    """The output of a command inside the image."""
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    arguments = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        command[0],
        image,
        *command[1:],
    ]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def name_of(endpoint) -> str:
    """The container's name, which local.py passed to `docker run`."""
    (process,) = psutil.Process(endpoint.process.pid).children()
    arguments = process.cmdline()
    return arguments[arguments.index("--name") + 1]


def inspect(endpoint, form: str) -> str:
    """One field of an endpoint's container."""
    return docker_output("inspect", "--format", form, name_of(endpoint))


def docker_output(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


@in_docker
def test_the_image_has_the_locked_packages_and_no_compiler_and_no_cache(docker):
    listed = in_image("python3", "-m", "pip", "list", "--path", "/opt/packages", "--format", "freeze")
    pinned = dict(PINS.findall((SERVE / "requirements.lock").read_text()))
    del pinned["openvino-telemetry"]  # the Dockerfile takes it out
    assert dict(PINS.findall(listed.lower().replace("_", "-"))) == pinned
    assert in_image("sh", "-c", "ls /root/.cache 2>/dev/null; command -v gcc cc c++ ld make; true") == ""
    assert set(in_image("ls", "/opt/serve").split()) - {"__pycache__"} == {
        file.name for file in SERVE.glob("*.py")
    }


@in_docker
def test_the_image_is_at_most_350_megabytes(docker):
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    assert int(docker_output("image", "inspect", "--format", "{{.Size}}", image)) < 350e6


@in_docker
def test_it_runs_as_nobody_in_a_read_only_container_with_a_memory_limit(docker_endpoint):
    assert (
        inspect(docker_endpoint, "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}}")
        == f"true {1024 * 2**20}"
    )
    process = psutil.Process(int(inspect(docker_endpoint, "{{.State.Pid}}")))
    assert (process.uids().effective, process.gids().effective) == (65534, 65534)
    assert process.cmdline()[-2:] == ["/opt/serve/container.py", "serve"]


def address(endpoint) -> tuple[str, int]:
    """The address of an endpoint's container itself."""
    (process,) = psutil.Process(endpoint.process.pid).children()
    arguments = " ".join(process.cmdline())
    (ports,) = re.findall(r"BIND_TO_PORT=(\d+)|--publish 127.0.0.1:(\d+):", arguments)[:1]
    return "127.0.0.1", int("".join(ports))


@in_docker
def test_requests_in_flight_are_answered_when_the_container_is_stopped(project, docker):
    """SIGTERM while eight callers have sent half a picture; the other half comes after the server knows."""
    picture = a_picture(project)
    with serving(project, "plain", None, "--docker") as endpoint, contextlib.ExitStack() as connections:
        url = "http://{}:{}".format(*address(endpoint))
        callers = [connections.enter_context(expecting(url, len(picture))) for _ in range(8)]
        for caller in callers:
            caller.sendall(picture[:100])
        docker_output("kill", "--signal", "TERM", name_of(endpoint))
        wait_for_ping(url, 503, 0)
        for caller in callers:
            caller.sendall(picture[100:])
        answers = [caller.recv(17) for caller in callers]
        connections.close()
        assert endpoint.process.wait(40) == 3
    assert answers == [b"HTTP/1.1 200 OK\r\n"] * 8


@in_docker
def test_it_stops_at_once_before_it_listens(project, docker):
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    mount = f"type=bind,source={project / 'model'},target=/opt/ml/model,readonly"
    name = docker_output("run", "--detach", "--network", "none", "--mount", mount, image, "serve")
    try:
        wait_for_handler(int(docker_output("inspect", "--format", "{{.State.Pid}}", name)))
        begin = time.monotonic()
        docker_output("stop", "--time", "20", name)
        assert time.monotonic() - begin < 10
    finally:
        docker_output("rm", "--force", name)


@in_docker
@pytest.mark.parametrize("case", ["no capabilities", "a closed folder", "a link to nothing"])
def test_it_stays_root_with_a_warning_where_it_must(project, tmp_path, docker, case):
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    flags, reason = [], "only root can read /opt/ml/model/extra"
    if case == "no capabilities":
        flags, reason = ["--cap-drop", "ALL"], "Operation not permitted"
    elif case == "a closed folder":
        (model / "extra").mkdir(mode=0o700)
    else:
        (model / "extra").symlink_to("nothing")
    mount = f"type=bind,source={model},target=/opt/ml/model"
    name = docker_output("run", "--detach", "--network", "none", *flags, "--mount", mount, image, "serve")
    try:
        wait_for_line(name, "INFO server: ready")
        assert "WARNING container: stays root: " in log_of(name)
        assert reason in log_of(name)
        assert "Traceback" not in log_of(name)
    finally:
        docker_output("rm", "--force", name)


def wait_for_handler(pid: int) -> None:
    """Wait until a process has a handler for SIGTERM, according to Linux."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
    raise AssertionError("no handler")


def log_of(name: str) -> str:
    done = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def wait_for_line(name: str, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in log_of(name):
        assert time.monotonic() < deadline, log_of(name)
        time.sleep(0.1)


@in_docker
def test_files_without_read_permission_are_readable_in_the_image(tmp_path, monkeypatch, docker):
    shutil.copytree(SERVE, tmp_path / "serve")
    for file in (tmp_path / "serve").iterdir():
        if file.is_file():
            file.chmod(0o600)
    with open(tmp_path / "serve" / "app.py", "a") as file:
        file.write("# another image\n")
    monkeypatch.setattr(docker_build, "SERVE_FOLDER", tmp_path / "serve")
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    as_nobody = ["docker", "run", "--rm", "--user", "65534", "--entrypoint", "cat"]
    command = [*as_nobody, image, "/opt/serve/server.py"]
    assert subprocess.run(command, capture_output=True, check=True).stdout
    docker_output("image", "rm", image)


@in_docker
def test_the_image_has_no_setuid_programs(docker):
    assert in_image("find", "/", "-xdev", "-perm", "/6000", "-type", "f") == ""


@in_docker
def test_four_large_pictures_at_once_fit_into_one_gigabyte(docker_endpoint):
    """Decoding 49 megapixels takes 350 MB: more than two at a time would not fit."""
    file = io.BytesIO()
    Image.new("RGBA", (7000, 7000), "grey").save(file, "PNG")
    with ThreadPoolExecutor(4) as pool:
        replies = [
            pool.submit(requests.post, f"{docker_endpoint.url}/invocations", file.getvalue(), timeout=120)
            for _ in range(4)
        ]
        assert [reply.result().status_code for reply in replies] == [200] * 4


@in_docker
def test_a_wrong_model_is_the_same_error_as_without_docker(project, tmp_path, docker):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    (model / "model.onnx").write_bytes(b"x")
    done = run("deploy/local.py", "--model", model, "--port", 0, "--docker", code=1)
    assert "package it again" in done.stderr


@in_docker
def test_the_verdict_in_docker_is_the_same_as_without(project, docker):
    expect = [
        "client/cli.py",
        "--endpoint",
        "tiny",
        "--expect",
        str(project / "train/validation.json"),
        "--json",
    ]
    output = run(
        *("deploy/local.py", "--model", project / "model", "--port", 0, "--docker", "--memory", 1024),
        *(sys.executable, *expect),
    ).stdout
    summary = json.loads(output[output.index("{") :])["summary"]
    assert summary["verdict"]["passed"]


@in_docker
def test_a_resnet50_fits_into_one_gigabyte(tmp_path, docker):
    options = {"data": "sample", "labels": LABELS, "arch": "resnet50", "size": 64, "frozen": 0, "unfrozen": 1}
    options |= {"weights": "none", "workers": 0, "valid": 0.8, "out": tmp_path / "train"}
    run("train/train.py", *(word for key, value in options.items() for word in (f"--{key}", value)))
    run("package/export.py", "--train", tmp_path / "train", "--out", tmp_path / "model")
    pictures = sorted((tmp_path / "train" / "pictures").iterdir())[:8]
    with serving(tmp_path, "plain", None, "--docker", "--memory", "1024") as endpoint:
        for picture in pictures:
            reply = requests.post(f"{endpoint.url}/invocations", picture.read_bytes(), timeout=60)
            assert reply.status_code == 200
        assert inspect(endpoint, "{{.State.OOMKilled}}") == "false"


@in_docker
def test_no_container_is_left_after_either_signal(project, docker):
    for number in (signal.SIGINT, signal.SIGTERM):
        with serving(project, "plain", None, "--docker") as endpoint:
            name = name_of(endpoint)
            endpoint.process.send_signal(number)
            assert endpoint.process.wait(40) == 0
        assert name not in docker_output("ps", "--all", "--format", "{{.Names}}").split()
