"""The Makefile on machines that are not this one: moved, without venv, with an older or a newer set-up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

LOCK = "requirements.lock"


@pytest.fixture
def copy(tmp_path) -> Path:
    """The Makefile, tasks.py and the configuration, with one script."""
    folder = tmp_path / "a cöpy"
    shutil.copytree(ROOT / "config", folder / "config")
    for name in ("tasks.py", "configuration.py", "Makefile"):
        shutil.copy(ROOT / name, folder)
    (folder / "train").mkdir()
    (folder / "train/train.py").touch()
    (folder / LOCK).touch()
    return folder


def make(folder: Path, *words: str) -> subprocess.CompletedProcess:
    env = {key: text for key, text in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, env=env, check=False)


def script(file: Path, text: str) -> Path:
    """An executable shell script."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}")
    file.chmod(0o755)
    return file


def complete(folder: Path) -> None:
    """A set-up that is newer than the lock."""
    os.utime(folder / LOCK, (0, 0))
    (folder / ".venv/.complete").touch()


def own_venv(folder: Path) -> Path:
    """A .venv as Python makes it, whose packages are this one's."""
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    import invoke

    (packages / "here.pth").write_text(str(Path(invoke.__file__).parents[1]))
    complete(folder)
    return venv


def test_every_tool_is_a_module_because_scripts_of_a_moved_venv_fail():
    text = (ROOT / "Makefile").read_text()
    called = [line for line in text.splitlines() if "$(BIN)/" in line and not line.startswith("#")]
    assert len(called) > 5
    scripts = ("$(BIN)/invoke", "$(BIN)/pytest", "$(BIN)/ruff", "$(BIN)/mypy", "$(BIN)/pip", "$(BIN)/uv")
    assert not [line for line in called if any(name in line for name in scripts)]


def test_a_moved_checkout_works(copy):
    venv = own_venv(copy)
    script(venv / "bin/invoke", "").write_text("#!/no/such/place/.venv/bin/python\n")
    moved = copy.with_name("möved again")
    copy.rename(moved)
    done = make(moved, "train", "ARGS=--dry")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(".venv/bin/python train/train.py ")
    assert "note: this folder was moved" in make(moved, "setup").stdout
    done = make(moved, "trian")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: no verb is called trian (did you mean train?): `make help` lists them\n"
    )


def test_a_venv_whose_python_is_gone_says_what_to_do(copy):
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").symlink_to("/no/such/python3.12")
    complete(copy)
    done = make(copy, "train")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: the Python that .venv was made with is gone: remove .venv and repeat\n"
    )
    assert make(copy, "help").returncode == 0


DEBIAN = (
    "The virtual environment was not created successfully because ensurepip is not\navailable.  On Debian"
)
APT = "has no working venv module: on Debian and Ubuntu, apt install python3-venv"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (f"{DEBIAN}/Ubuntu systems, ...\n\nFailing command: ...\n", APT),
        ("/usr/bin/python3: No module named venv\n", APT),
        ("Error: [Errno 28] No space left on device: '.venv'\n", "failed: Error: [Errno 28] No space left"),
        ("Error: [Errno 30] Read-only file system: '.venv'\n", "failed: Error: [Errno 30] Read-only file"),
        ("Error: [Errno 13] Permission denied: '.venv'\n\n", "failed: Error: [Errno 13] Permission denied"),
    ],
    ids=["no ensurepip", "no venv", "disk full", "read-only", "denied"],
)  # fmt: skip
def test_each_failure_of_venv_says_its_own_cause(copy, output, sentence):
    message = copy / "message"
    message.write_text(output)
    script(copy / "python", 'test "$1" = -m || exit 0\ncat message >&2\nexit 1\n')
    done = make(copy, "setup", "PYTHON=./python", "GIGABYTES=0")
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[0]
    assert ("apt install" in done.stderr) == (sentence == APT)
    assert not (copy / ".venv/.complete").exists()


def test_a_path_that_venv_refuses_is_its_own_sentence(copy):
    refused = copy.with_name("a:b")
    copy.rename(refused)
    done = make(refused, "setup", f"PYTHON={sys.executable}", "GIGABYTES=0")
    assert done.returncode == 2
    assert "failed: Error: Refusing to create a venv in" in done.stderr.splitlines()[0]


def test_a_newer_lock_installs_and_removes_nothing(copy):
    log = copy / "log"
    script(copy / "python", "exit 0\n")
    script(copy / ".venv/bin/python", 'echo "$@" >> log\n')
    assert make(copy, "setup", "PYTHON=./python", "GIGABYTES=0").returncode == 0
    (install,) = [line for line in log.read_text().splitlines() if line.startswith("-m uv")]
    assert install.startswith("-m uv pip install --python .venv/bin/python --no-deps ")
    assert install.endswith(" -r requirements.lock")
    log.unlink()
    assert make(copy, "setup", "PYTHON=./python", "GIGABYTES=0").returncode == 0
    assert "-m uv" not in log.read_text()  # once


def test_the_kernel_is_this_venv_for_this_user_only(copy, monkeypatch):
    home = copy.with_name("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_PATH", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    venv = own_venv(copy)
    for _ in range(2):  # again replaces it
        done = make(copy, "kernel")
        assert (done.returncode, done.stderr) == (0, "")
    installed, choose, remove = done.stdout.splitlines()
    (written,) = home.rglob("kernel.json")
    assert written.parent.name == "fastai-sagemaker"
    assert installed == f"Installed kernelspec fastai-sagemaker in {written.parent}"
    kernel = json.loads(written.read_text())
    assert kernel["display_name"] == "fastai-sagemaker"
    assert (kernel["argv"][0], kernel["argv"][-4:]) == (
        str(venv / "bin/python"),
        ["-m", "ipykernel_launcher", "-f", "{connection_file}"],
    )
    assert choose.endswith("choose fastai-sagemaker")
    *_, command = remove.partition("to remove it: ")
    # The command `jupyter kernelspec` is this module.
    tool, verb, *words = command.split()[1:]
    assert tool == "kernelspec"
    python = [venv / "bin/python", "-m", "jupyter_client.kernelspecapp", verb, "-f", *words]
    subprocess.run(python, check=True, capture_output=True)
    assert not list(home.rglob("kernel.json"))


def test_a_kernel_that_cannot_be_installed_is_one_sentence(copy, monkeypatch):
    own_venv(copy)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(copy / LOCK))  # a file
    done = make(copy, "kernel")
    assert (done.returncode, done.stdout) == (2, "")
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: the kernel could not be installed: NotADirectoryError: ")


def test_clean_keeps_learners_and_nothing_else(copy):
    for file in ("build/mine/train/export.pkl", "build/mine/model/model.json", "build/mine/model.tar.gz"):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).touch()
    (copy / "build/empty/model").mkdir(parents=True)
    for _ in range(2):
        done = make(copy, "clean")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        left = sorted(path.relative_to(copy).as_posix() for path in (copy / "build").rglob("*"))
        assert left == ["build/mine", "build/mine/train", "build/mine/train/export.pkl"]
    shutil.rmtree(copy / "build")
    assert make(copy, "clean").returncode == 0


@pytest.mark.parametrize("failing", ["ruff check", "ruff format", "mypy", "nothing"])
def test_lint_runs_all_three_checks_and_fails_if_one_does(copy, failing):
    script(copy / ".venv/bin/python", f'echo "$@" >> log\ncase "$*" in *"{failing}"*) exit 1;; esac\n')
    complete(copy)
    done = make(copy, "lint")
    checks = [line for line in (copy / "log").read_text().splitlines() if line.startswith("-m")]
    assert checks == ["-m ruff check .", "-m ruff format --check .", "-m mypy"]
    assert (done.returncode == 0) == (failing == "nothing")
