"""What the tests share: one small project, really trained and packaged once, and endpoints that serve it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import context

# Before torch is imported: threads that spin while they wait slow down whatever else runs on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
LABELS = r"^(.+)_\d+\.\w+$"


@dataclass
class Endpoint:
    """A running deploy/local.py: where it is, and the build/<project> folder that it serves."""

    url: str
    project: Path
    process: subprocess.Popen


def run(script: str, *words: object, code: int = 0, **options: object) -> subprocess.CompletedProcess:
    """Run one of the project's scripts from its root, and insist on its exit code."""
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@contextmanager
def serving(project: Path, stack: str, model: Path | None = None, *more: str) -> Iterator[Endpoint]:
    """deploy/local.py on a free port, until the block ends; then Ctrl-C."""
    options = {"model": model or project / "model", "port": 0, "stack": stack}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "deploy/local.py", *words, *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = []  # Docker tells of what it builds, first
        while not (address := re.search(r"answers at (http://\S+)", said[-1] if said else "")):
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        yield Endpoint(address[1], project, process)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build/<project> folder: generated pictures, a small network, trained, exported and packed."""
    folder = tmp_path_factory.mktemp("build") / "tiny"
    options = {"data": "sample", "labels": LABELS, "arch": "resnet18", "size": 48, "frozen": 0, "unfrozen": 3}
    options |= {"weights": "none", "workers": 0, "seed": 0, "out": folder / "train"}
    run("train/train.py", *(word for key, value in options.items() for word in (f"--{key}", value)))
    run("package/export.py", "--train", folder / "train", "--out", folder / "model")
    run("package/archive.py", "--model", folder / "model", "--out", folder / "model.tar.gz")
    return folder


@pytest.fixture(scope="session")
def endpoint(project: Path) -> Iterator[Endpoint]:
    """The project behind the plain server."""
    with serving(project, "plain") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ray_endpoint(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """As in AWS's container: the archive unpacked, `serve run config.yaml`, an adapter before it."""
    model = tmp_path_factory.mktemp("opt") / "model"
    shutil.unpack_archive(project / "model.tar.gz", model, filter="data")
    with serving(project, "ray", model) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def docker() -> None:
    """A Docker engine; BASE_IMAGE in the environment names an image in place of the Dockerfile's own base."""
    if not context.is_there_docker():
        pytest.skip("no Docker engine answers here")


@pytest.fixture(scope="session")
def docker_endpoint(project: Path, docker: None) -> Iterator[Endpoint]:
    """The project in the image of serve/Dockerfile, as SageMaker runs it."""
    with serving(project, "plain", None, "--docker", "--memory", "1024") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def pets() -> list[Path]:
    """120 real photographs, if this machine has them."""
    folder = Path(os.environ.get("PETS", ROOT.parent / "shared" / "pets" / "images"))
    if not folder.is_dir():
        pytest.skip("the real photographs are not on this machine")
    return sorted(folder.iterdir())
