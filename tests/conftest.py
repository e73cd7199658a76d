"""What the tests share: one small project, really trained and packaged, endpoints that serve it, and how the
tests are distributed over the processes of pytest-xdist."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import LABELS, ROOT, Endpoint, cached, content_hash, machine, run, serving

# Before torch is imported: threads that spin while they wait slow down whatever else runs on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # there is a worker for each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Fixtures of several files, and the group of the tests that use them.
SHARED = {"ray_endpoint": "ray", "docker_endpoint": "docker", "docker": "docker", "endpoint": "plain"}
LONGEST = (
    "bench_serving",
    "train",
    "load",
    "ray",
    "notebook",
    "precision",
    "test_server",
    "test_export",
    "plain",
)


# --- what is made once


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`keep(name, *sources, make=function)`: a copy of the folder that `make(folder)` fills.

    The folder is in pytest's cache, for later runs and other workers, until what makes it has changed: the
    sources (a Path is a file or folder that is read), the file of `make`, Python, the packages, this machine.
    """
    cache = getattr(request.config, "cache", None)  # missing under `-p no:cacheprovider`
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else None
    folder = cache.mkdir("kept") if cache else (shared or tmp_path_factory.getbasetemp())

    def keep(name: str, *sources: object, make: Callable[[Path], object]) -> Path:
        key = content_hash(*sources, Path(make.__code__.co_filename), ROOT / "requirements.lock", *machine())
        return cached(Path(folder), name, key, make, tmp_path_factory.mktemp("build") / name)

    return keep


@pytest.fixture(scope="session")
def project(keep: Callable[..., Path]) -> Path:
    """A build/<project> folder: generated pictures, a small network, trained, exported and packed."""
    sources = [ROOT / name for name in ("train", "package", "serve")]

    def make(folder: Path) -> None:
        options = {
            "data": "sample",
            "labels": LABELS,
            "arch": "resnet18",
            "size": 48,
            "frozen": 0,
            "unfrozen": 3,
        }
        options |= {"weights": "none", "workers": 0, "seed": 0, "out": folder / "train"}
        run("train/train.py", *(word for key, value in options.items() for word in (f"--{key}", value)))
        run("package/export.py", "--train", folder / "train", "--out", folder / "model")
        run("package/archive.py", "--model", folder / "model", "--out", folder / "model.tar.gz")

    return keep("tiny", *sources, make=make)


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
    from ecr.docker_build import is_docker_running

    if not is_docker_running():
        pytest.skip("no Docker engine is running here")


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


@pytest.fixture(autouse=True)
def terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as without a terminal, whatever a terminal or a library has set in the environment."""
    monkeypatch.delenv("COLUMNS", raising=False)


# --- pytest-xdist


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests must run in the same worker, and begin with the groups that take longest."""
    for item in items:
        name = group_of(item)
        if name and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(name))
    if hasattr(config, "workerinput"):
        items.sort(key=rank)


def group_of(item: pytest.Item) -> str | None:
    """The group whose tests share a worker: by a server, or by fixtures of their file. None: any worker."""
    if "_ray_" in f"_{item.name.partition('[')[0]}_":  # starts a Ray of its own
        return "ray"
    callspec = getattr(item, "callspec", None)
    found = {SHARED[name] for name in getattr(item, "fixturenames", ()) if name in SHARED}
    found |= set(SHARED.values()) & {str(value) for value in callspec.params.values()} if callspec else set()
    if found:
        return next(name for name in SHARED.values() if name in found)
    definitions = getattr(item, "_fixtureinfo", None)
    fixtures: dict[str, Any] = definitions.name2fixturedefs if definitions else {}
    own = any(known and known[-1].scope in ("module", "class") for known in fixtures.values())
    return item.path.stem if own else None


def rank(item: pytest.Item) -> int:
    """The place of a test's group among LONGEST; single tests come last, to fill the gaps."""
    marker = item.get_closest_marker("xdist_group")
    if not marker:
        return len(LONGEST) + 1
    return LONGEST.index(marker.args[0]) if marker.args[0] in LONGEST else len(LONGEST)


# --- the fault matrix


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many faults test_endpoint_faults.py tried, in all workers together."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    properties = [pair for report in reports for pair in getattr(report, "user_properties", ())]
    tried = {tuple(value) for key, value in properties if key == "fault"}
    if not tried:
        return
    pairs = {(call, kind) for _, call, kind, _ in tried}
    calls, kinds = ({pair[place] for pair in pairs} for place in (0, 1))
    terminalreporter.write_line(
        f"{len(pairs)} (call, fault) pairs of {len(calls)} AWS calls and {len(kinds)} faults were tried,"
        f" in {len(tried)} runs of {len({name for name, *_ in tried})} commands"
        + ("" if os.environ.get("FAULTS") == "all" else "; FAULTS=all tries all")
    )
