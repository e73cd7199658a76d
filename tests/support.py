"""What several test files use: scripts as commands, Invoke tasks, endpoints on this machine."""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
LABELS = r"^(.+)_\d+\.\w+$"


@dataclass
class Endpoint:
    """A running deploy/local.py: where it is, and the build/<project> folder that it serves."""

    url: str
    project: Path
    process: subprocess.Popen[str]


def run(script: str, *words: object, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts in its root folder; the exit code must be `code`."""
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@contextmanager
def serving(project: Path, stack: str, model: Path | None = None, *more: str) -> Iterator[Endpoint]:
    """deploy/local.py on a free port, stopped by SIGINT when the block ends."""
    options = {"model": model or project / "model", "port": 0, "stack": stack}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "deploy/local.py", *words, *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        output: list[str] = []  # Docker's build comes first
        while not (address := re.search(r"answers at (http://\S+)", output[-1] if output else "")):
            output.append(process.stdout.readline())
            assert output[-1], "".join(output)
        yield Endpoint(address[1], project, process)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


INVOKE = (
    sys.executable,
    "-m",
    "invoke",
)  # not bin/invoke, whose first line is wrong in a folder that was moved


def invoke(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Invoke; any exit code."""
    command = [*INVOKE, *words]
    env = os.environ | environment
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env, check=False)


def said(*words: str, **options: Any) -> list[list[str]]:
    """The commands that `invoke --dry ...` prints, as words, without the interpreter."""
    done = invoke("--dry", *words, **options)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line)[1:] for line in done.stderr.splitlines()]


def value(command: list[str], flag: str) -> str:
    """What a command gives a flag as --flag=value."""
    return next(word.removeprefix(f"{flag}=") for word in command if word.startswith(f"{flag}="))


def content_hash(*parts: object) -> str:
    """A hash of files and folders (as Path, all that is in them) and of other facts (as text)."""
    digest = hashlib.sha256()
    for part in parts:
        files = [part] if isinstance(part, Path) and part.is_file() else []
        if isinstance(part, Path) and part.is_dir():
            files = sorted(
                file for file in part.rglob("*") if file.is_file() and "__pycache__" not in file.parts
            )
        for file in files:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
        if not isinstance(part, Path):
            digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:16]


def machine() -> list[str]:
    """What a packaged model depends on: Python, the processor's abilities, and what they are said to be."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    abilities = sorted(
        {line for line in lines if line.lower().startswith(("flags", "features", "model name"))}
    )
    gpu = str(Path("/dev/nvidiactl").exists())
    return [sys.version, platform.platform(), *abilities, gpu, os.environ.get("SERVE_MODES", "")]


def cached(folder: Path, name: str, key: str, make: Callable[[Path], object], copy: Path) -> Path:
    """A copy of what `make(path)` puts into the folder `path`, which is kept in `folder` under `key`.

    One process makes it while others wait; a failure leaves nothing; what had another key is removed.
    """
    kept = folder / f"{name}-{key}"
    with FileLock(folder / f"{name}.lock"):
        if not kept.exists():
            for old in folder.glob(f"{name}-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}-") as unfinished:
                make(Path(unfinished) / name)
                (Path(unfinished) / name).rename(kept)
        shutil.copytree(kept, copy)
    return copy


class SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def disable_signal_stack() -> None:
    """Let signals of this thread use its own stack.

    OpenVINO's CPU plugin sets another one in the thread that first uses it, and frees it in whichever thread
    drops the plugin (SigAltStackSetup in its plugin.cpp): the next signal is then a segmentation fault. Tests
    of the engine may have left that in this process; the command that is interrupted never loads OpenVINO.
    """
    if sys.platform == "linux":
        disabled = SignalStack(flags=2)  # SS_DISABLE
        ctypes.CDLL(None).sigaltstack(ctypes.byref(disabled), None)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in this process, as in a terminal; handlers are restored at the end.

    A shell that started the tests in the background has set SIGINT to be ignored.
    """
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    disable_signal_stack()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for sign, handler in handlers.items():
            signal.signal(sign, handler)
