"""The image of serve/Dockerfile: what starts it, what is in it, and how it behaves as SageMaker runs it."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from PIL import Image

from common import CommandError
from ecr import docker_build
from emulator import docker_run
from support import LABELS, ROOT, run, serving

SERVE = ROOT / "serve"
PINS = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def start(*words: str, script: Path = SERVE / "container.py", **environment: str):
    """container.py as an entry point, to its end."""
    command = [sys.executable, "-B", script, *words]
    given = os.environ | environment
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)


# --- without Docker


@pytest.mark.parametrize("words", [[], ["train"], ["serve", "now"]], ids=["nothing", "train", "two words"])
def test_it_knows_one_word(words):
    done = start(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this image knows one word, serve, not ")


def test_an_archive_without_code_is_told(tmp_path):
    done = start("serve", SM_MODEL_DIR=str(tmp_path), SERVE_CODE="archive")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "`invoke package` makes archives that have it" in done.stderr


def test_another_word_for_the_code_is_told(tmp_path):
    done = start("serve", SM_MODEL_DIR=str(tmp_path), SERVE_CODE="archiv")
    assert (done.returncode, done.stderr) == (1, "error: SERVE_CODE is image or archive, not 'archiv'\n")


@pytest.mark.parametrize(("asked", "runs"), [("", "image"), ("archive", "archive"), ("image", "image")])
def test_the_archives_code_runs_only_if_it_is_asked_for(tmp_path, asked, runs):
    """Two servers that say who they are and with what they were started."""
    for place in (image := tmp_path / "image", tmp_path / "model" / "code"):
        place.mkdir(parents=True)
        name = "image" if place == image else "archive"
        (place / "server.py").write_text(f"import sys; print({name!r}, *sys.argv[1:])")
    shutil.copy(SERVE / "container.py", image)
    model = str(tmp_path / "model")
    (tmp_path / "model" / "secret").touch(mode=0o600)  # pytest's own folders are closed to nobody as well
    given = {"SM_MODEL_DIR": model, "SERVE_CODE": asked, "SAGEMAKER_BIND_TO_PORT": "8123"}
    done = start("serve", script=image / "container.py", **given)
    last = done.stdout.splitlines()[-1]
    assert last == f"{runs} --model {model} --host 0.0.0.0 --port 8123"


def test_the_lock_of_the_image_has_what_serving_needs_in_the_versions_of_the_whole():
    text, whole = (SERVE / "requirements.lock").read_text(), (ROOT / "requirements.lock").read_text()
    pinned = dict(PINS.findall(text))
    assert {"numpy", "openvino", "pillow", "starlette", "uvicorn"} <= set(pinned)
    assert pinned.items() <= set(PINS.findall(whole))
    assert "://" not in text
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z])", text)[1:])


def test_the_base_image_is_named_by_its_content():
    base = re.search(r"^ARG BASE=(\S+)$", (SERVE / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert re.fullmatch(r"public\.ecr\.aws/docker/library/python:3\.13-slim-\w+@sha256:[0-9a-f]{64}", base)


def test_the_images_name_follows_from_what_goes_into_it(tmp_path, monkeypatch):
    before = docker_build.content_tag("amd64")
    assert before == docker_build.content_tag("amd64")
    assert (
        len({before, docker_build.content_tag("arm64"), docker_build.content_tag("amd64", "another:base")})
        == 3
    )
    shutil.copytree(SERVE, tmp_path / "serve")
    monkeypatch.setattr(docker_build, "SERVE_FOLDER", tmp_path / "serve")
    assert docker_build.content_tag("amd64") == before
    (tmp_path / "serve" / "notes.txt").write_text("the build does not read this")
    assert docker_build.content_tag("amd64") == before
    with open(tmp_path / "serve" / "server.py", "a") as file:
        file.write("# changed\n")
    assert docker_build.content_tag("amd64") != before


def test_the_build_reads_what_names_the_image():
    """.dockerignore lets through what context.files() counts; the rest would change images without a name."""
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
    monkeypatch.setattr(docker_build, "docker_cpus", lambda: 4)
    assert docker_run.size_flags(instance, memory) == flags


def test_an_instance_that_does_not_exist_is_a_sentence():
    with pytest.raises(
        CommandError, match=r"there is no instance type 'ml.c7i.lage' here: is it ml.c7i.large"
    ):
        docker_run.size_flags("ml.c7i.lage", None)


def test_no_engine_is_a_sentence(project):
    nowhere = os.environ | {"DOCKER_HOST": "unix:///nowhere"}
    done = run("deploy/local.py", "--model", project / "model", "--port", 0, "--docker", code=3, env=nowhere)
    assert done.stderr == "error: no Docker engine responds: start one, or leave --docker out\n"


# --- in Docker


def in_image(*command: str) -> str:
    """What a command prints inside the image."""
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    words = ["docker", "run", "--rm", "--network", "none", "--entrypoint", command[0], image, *command[1:]]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def name_of(endpoint) -> str:
    """The container's, as its local.py gave it to `docker run`."""
    (process,) = psutil.Process(endpoint.process.pid).children()
    words = process.cmdline()
    return words[words.index("--name") + 1]


def inspect(endpoint, form: str) -> str:
    """One fact of an endpoint's container."""
    return docker_says("inspect", "--format", form, name_of(endpoint))


def docker_says(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def test_the_image_has_the_locked_packages_and_no_compiler_and_no_cache(docker):
    listed = in_image("python3", "-m", "pip", "list", "--path", "/opt/packages", "--format", "freeze")
    pinned = dict(PINS.findall((SERVE / "requirements.lock").read_text()))
    del pinned["openvino-telemetry"]  # the Dockerfile takes it out
    assert dict(PINS.findall(listed.lower().replace("_", "-"))) == pinned
    assert in_image("sh", "-c", "ls /root/.cache 2>/dev/null; command -v gcc cc c++ ld make; true") == ""
    assert set(in_image("ls", "/opt/serve").split()) - {"__pycache__"} == {
        file.name for file in SERVE.glob("*.py")
    }


def test_the_image_is_at_most_350_megabytes_unpacked(docker):
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    assert int(docker_says("image", "inspect", "--format", "{{.Size}}", image)) < 350e6


def test_it_runs_as_nobody_in_a_sealed_container_with_a_limit(docker_endpoint):
    assert (
        inspect(docker_endpoint, "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}}")
        == f"true {1024 * 2**20}"
    )
    process = psutil.Process(int(inspect(docker_endpoint, "{{.State.Pid}}")))
    assert (process.uids().effective, process.gids().effective) == (65534, 65534)
    assert process.cmdline()[-2:] == ["/opt/serve/container.py", "serve"]


def address(endpoint) -> tuple[str, int]:
    """Where an endpoint's container itself listens."""
    (process,) = psutil.Process(endpoint.process.pid).children()
    words = " ".join(process.cmdline())
    return "127.0.0.1", int(
        re.search(r"BIND_TO_PORT=(\d+)|--publish 127.0.0.1:(\d+):", words).expand(r"\1\2")
    )


def test_requests_in_flight_are_answered_when_the_container_is_stopped(project, docker):
    """SIGTERM while eight callers have sent half a picture; the rest comes well after the server knows."""
    picture = sorted((project / "train" / "pictures").iterdir())[0].read_bytes()
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    with serving(project, "plain", None, "--docker") as endpoint:
        callers = [socket.create_connection(address(endpoint), timeout=30) for _ in range(8)]
        for caller in callers:
            caller.sendall(head + picture[:100])
        time.sleep(0.5)
        docker_says("kill", "--signal", "TERM", name_of(endpoint))
        time.sleep(3)
        for caller in callers:
            caller.sendall(picture[100:])
        answers = [caller.recv(17) for caller in callers]
        for caller in callers:
            caller.close()
        assert endpoint.process.wait(40) == 3
    assert answers == [b"HTTP/1.1 200 OK\r\n"] * 8


def test_it_ends_at_once_when_it_is_stopped_before_it_listens(project, docker):
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    mount = f"type=bind,source={project / 'model'},target=/opt/ml/model,readonly"
    name = docker_says("run", "--detach", "--network", "none", "--mount", mount, image, "serve")
    try:
        wait_for_handler(int(docker_says("inspect", "--format", "{{.State.Pid}}", name)))
        begin = time.monotonic()
        docker_says("stop", "--time", "20", name)
        assert time.monotonic() - begin < 10
    finally:
        docker_says("rm", "--force", name)


@pytest.mark.parametrize("case", ["no capabilities", "a closed folder", "a link to nothing"])
def test_it_stays_root_with_a_warning_where_it_must(project, tmp_path, docker, case):
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    flags, reason = [], "nobody else may read /opt/ml/model/extra"
    if case == "no capabilities":
        flags, reason = ["--cap-drop", "ALL"], "Operation not permitted"
    elif case == "a closed folder":
        (model / "extra").mkdir(mode=0o700)
    else:
        (model / "extra").symlink_to("nothing")
    mount = f"type=bind,source={model},target=/opt/ml/model"
    name = docker_says("run", "--detach", "--network", "none", *flags, "--mount", mount, image, "serve")
    try:
        wait_for_line(name, "INFO server: ready")
        assert "WARNING container: stays root: " in log_of(name)
        assert reason in log_of(name)
        assert "Traceback" not in log_of(name)
    finally:
        docker_says("rm", "--force", name)


def wait_for_handler(pid: int) -> None:
    """Until a process has a handler for SIGTERM, as Linux says."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
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


def test_files_that_were_closed_when_the_image_was_built_are_open_in_it(tmp_path, monkeypatch, docker):
    shutil.copytree(SERVE, tmp_path / "serve")
    for file in (tmp_path / "serve").iterdir():
        if file.is_file():
            file.chmod(0o600)
    with open(tmp_path / "serve" / "app.py", "a") as file:
        file.write("# another image\n")
    monkeypatch.setattr(docker_build, "SERVE_FOLDER", tmp_path / "serve")
    image = docker_build.build(docker_build.host_architecture(), os.environ.get("BASE_IMAGE"))
    nobody = [
        "docker",
        "run",
        "--rm",
        "--user",
        "65534",
        "--entrypoint",
        "cat",
        image,
        "/opt/serve/server.py",
    ]
    assert subprocess.run(nobody, capture_output=True, check=True).stdout
    docker_says("image", "rm", image)


def test_nothing_in_the_image_gives_back_root(docker):
    assert in_image("find", "/", "-xdev", "-perm", "/6000", "-type", "f") == ""


def test_four_large_pictures_at_once_fit_into_one_gigabyte(docker_endpoint):
    """49 megapixels take 350 MB while they are read: more than two at a time would not."""
    file = io.BytesIO()
    Image.new("RGBA", (7000, 7000), "grey").save(file, "PNG")
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(requests.post, f"{docker_endpoint.url}/invocations", file.getvalue(), timeout=120)
            for _ in range(4)
        ]
        assert [one.result().status_code for one in asked] == [200] * 4


def test_the_model_is_refused_as_by_the_plain_server(project, tmp_path, docker):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    (model / "model.onnx").write_bytes(b"x")
    done = run("deploy/local.py", "--model", model, "--port", 0, "--docker", code=1)
    assert "package it again" in done.stderr


def test_the_verdict_in_docker_is_that_of_the_plain_server(project, docker):
    expect = [
        "client/cli.py",
        "--endpoint",
        "tiny",
        "--expect",
        str(project / "train/validation.json"),
        "--json",
    ]
    said = run(
        *("deploy/local.py", "--model", project / "model", "--port", 0, "--docker", "--memory", 1024),
        *(sys.executable, *expect),
    ).stdout
    summary = json.loads(said[said.index("{") :])["summary"]
    assert summary["verdict"]["passed"]


def test_a_resnet50_lives_in_one_gigabyte(tmp_path, docker):
    options = {"data": "sample", "labels": LABELS, "arch": "resnet50", "size": 64, "frozen": 0, "unfrozen": 1}
    options |= {"weights": "none", "workers": 0, "valid": 0.8, "out": tmp_path / "train"}
    run("train/train.py", *(word for key, value in options.items() for word in (f"--{key}", value)))
    run("package/export.py", "--train", tmp_path / "train", "--out", tmp_path / "model")
    pictures = sorted((tmp_path / "train" / "pictures").iterdir())[:8]
    with serving(tmp_path, "plain", None, "--docker", "--memory", "1024") as endpoint:
        for picture in pictures:
            asked = requests.post(f"{endpoint.url}/invocations", picture.read_bytes(), timeout=60)
            assert asked.status_code == 200
        assert inspect(endpoint, "{{.State.OOMKilled}}") == "false"


def test_however_it_is_ended_no_container_stays(project, docker):
    for sign in (signal.SIGINT, signal.SIGTERM):
        with serving(project, "plain", None, "--docker") as endpoint:
            name = name_of(endpoint)
            endpoint.process.send_signal(sign)
            assert endpoint.process.wait(40) == 0
        assert name not in docker_says("ps", "--all", "--format", "{{.Names}}").split()
