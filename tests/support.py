"""What several test files use: scripts as commands, Invoke tasks, endpoints on this machine."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


INVOKE = (
    sys.executable,
    "-m",
    "invoke",
)  # not bin/invoke, whose first line is wrong in a folder that was moved


def invoke(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run Invoke; any exit code."""
    command = [*INVOKE, *words]
    env = os.environ | environment
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env, check=False)


def said(*words: str, **options: object) -> list[list[str]]:
    """The commands that `invoke --dry ...` prints, as words, without the interpreter."""
    done = invoke("--dry", *words, **options)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line)[1:] for line in done.stderr.splitlines()]


def value(command: list[str], flag: str) -> str:
    """What a command gives a flag as --flag=value."""
    return next(word.removeprefix(f"{flag}=") for word in command if word.startswith(f"{flag}="))
