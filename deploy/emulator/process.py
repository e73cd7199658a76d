"""The container's own server as a process of this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
STOP_SECONDS = 35  # SageMaker sends SIGTERM, and SIGKILL 30 s later


class RunningServer(NamedTuple):
    """A server that was started: its process, where it will answer, and the file of its log."""

    process: subprocess.Popen
    url: str
    log: Path


@contextmanager
def server_process(model: Path, stack: str) -> Iterator[RunningServer]:
    """The model's own code, by this machine's Python."""
    port = free_port()
    environment = environment_without_aws() | {
        "PYTHONPATH": f"{model}:{model / 'code'}",  # as in the container
        "PYTHONDONTWRITEBYTECODE": "1",  # the model folder stays what was packaged
        "SM_MODEL_DIR": str(model),
        "MALLOC_MMAP_THRESHOLD_": "4194304",  # as serve/Dockerfile
        "RAY_ADDRESS": "local",  # a cluster of its own, whatever else runs here
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory(prefix="local-endpoint-") as folder, ExitStack() as stop:
        command = server_command(model, stack, port, Path(folder))
        process = start_process(command, Path(folder), environment)
        stop.callback(stop_session, process)
        yield RunningServer(process, f"http://{HOST}:{port}", Path(folder) / "log")


def start_process(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    """The command in a session of its own, writing to `folder`/log."""
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
    """The command line that serves `model` on `port`."""
    if stack == "plain":
        return [sys.executable, str(model / "code" / "server.py"), "--model", str(model), "--port", str(port)]
    config = folder / "config.yaml"  # the packaged one, but on our port
    options = f"http_options:\n  host: {HOST}\n  port: {port}\n"
    config.write_text((model / "config.yaml").read_text() + options)
    return [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as free:
        return free.getsockname()[1]


def environment_without_aws() -> dict[str, str]:
    """This environment without the user's AWS settings and credentials."""
    return {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}


def stop_session(process: subprocess.Popen) -> None:
    """SIGTERM to the server, then SIGKILL to the rest of its session: Ray's helpers outlive their master."""
    import psutil

    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)  # an impatient second Ctrl-C would leave processes behind
    process.terminate()  # which `docker run` hands on to its container
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait()
