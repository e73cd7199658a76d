"""What the tests share: one small project, really trained and packaged once, and endpoints that serve it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecr import docker_build
from support import LABELS, ROOT, Endpoint, run, serving

# Before torch is imported: threads that spin while they wait slow down whatever else runs on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
    if not docker_build.is_docker_running():
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
