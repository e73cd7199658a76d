"""The model's own server as a process of this machine, without a container."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

HOST = "127.0.0.1"
LISTEN_SECONDS = 60  # a busy machine imports slowly; `local` reports a server that never listens
KILL_SECONDS = 10  # for SIGKILL to take effect
STOP_SECONDS = 35  # SageMaker sends SIGTERM, and SIGKILL 30 s later


class RunningServer(NamedTuple):
    """A server that was started: its process, its address, and its log file."""

    process: subprocess.Popen
    url: str
    log: Path


@contextmanager
def server_process(model: Path, stack: str) -> Iterator[RunningServer]:
    """The server in the model folder, run by this machine's Python."""
    port = 0 if stack == "plain" else free_port()
    environment = environment_without_aws() | {
        "PYTHONPATH": f"{model}:{model / 'code'}",  # as in the container
        "PYTHONDONTWRITEBYTECODE": "1",  # nothing is written into the model folder
        "SM_MODEL_DIR": str(model),
        "RAY_ADDRESS": "local",  # a cluster of its own, even if another one runs on this machine
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory(prefix="local-endpoint-") as folder, ExitStack() as stop:
        command = server_command(model, stack, port, Path(folder))
        process = start_process(command, Path(folder), environment)
        stop.callback(stop_session, process)
        log = Path(folder) / "log"
        yield RunningServer(process, f"http://{HOST}:{port}" if port else logged_url(process, log), log)


def start_process(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start a command in a session of its own; its output goes to `folder`/log."""
    with open(folder / "log", "wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def server_command(model: Path, stack: str, port: int, folder: Path) -> list[str]:
    """The command that serves `model` on `port`."""
    if stack == "plain":
        return [sys.executable, str(model / "code" / "server.py"), "--model", str(model), "--port", str(port)]
    config = folder / "config.yaml"  # the packaged one, with our port
    options = f"http_options:\n  host: {HOST}\n  port: {port}\n"
    config.write_text((model / "config.yaml").read_text() + options)
    return [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]


def logged_url(process: subprocess.Popen, log: Path) -> str:
    """The address that the plain server logs; that of port 0 if the server exits, or logs none in time."""
    deadline = time.monotonic() + LISTEN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"listening on (http://\S+)", log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.02)
    return f"http://{HOST}:0"


def free_port() -> int:
    """A port that is free now: Ray and `docker run` do not report which port they chose."""
    with socket.create_server((HOST, 0)) as free:
        return free.getsockname()[1]


def environment_without_aws() -> dict[str, str]:
    """This process's environment without the user's AWS settings and credentials."""
    return {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}


def stop_session(process: subprocess.Popen) -> None:
    """SIGTERM to the server, then SIGKILL to the rest of its session: Ray's helper processes ignore it."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)  # a second Ctrl-C would leave processes behind
    process.terminate()  # `docker run` forwards it to its container
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    deadline = time.monotonic() + KILL_SECONDS
    while (members := session(process.pid)) and time.monotonic() < deadline:
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        time.sleep(0.01)  # until they are gone: one may have started another meanwhile
    process.wait()


def session(leader: int) -> list[psutil.Process]:
    """The processes in a session, without zombies: those stay where the container's init reaps nothing."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader and (member := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                members.append(member)
    return members
