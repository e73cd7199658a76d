"""The servers that serving.py compares: how each is started and asked, what memory it takes, how it ends."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[1]
PROBE = Path(__file__).with_name("probe.py")
HOST = "127.0.0.1"
START_SECONDS = 180
STOP_SECONDS = 35
SAMPLE_SECONDS = 0.5  # between two looks at the memory: each takes some milliseconds per process
MEMORY = "PSS" if sys.platform == "linux" else "RSS"  # elsewhere nobody says how pages are shared


class BenchError(Exception):
    """What keeps the comparison from being made; `code` is the exit code."""

    def __init__(self, message: str, code: int = 3) -> None:
        super().__init__(message)
        self.code = code


def progress(words: str) -> None:
    """A line for who waits."""
    print(words, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Row:
    """One line of the table: whose way ("guide", "exact" or "fast"), on which stack, from which folder."""

    way: str
    stack: str
    model: Path


@dataclass
class Running:
    """A process that leads a session of its own, since when (time.perf_counter), and where to post to."""

    process: subprocess.Popen
    start: float
    log: Path
    url: str = ""


# --- one process and all its descendants


@contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str], stdout: int | None = None
) -> Iterator[Running]:
    """Start a command in a session of its own; at the end stop it, and whatever else is in that session."""
    log = folder / "log"
    with open(log, "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout or output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Running(process, start, log)
    finally:
        stop_session(process)


def stop_session(process: subprocess.Popen) -> None:
    """SIGTERM to the leader, then SIGKILL to the rest: the helpers of Ray and TorchServe outlive it."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:  # also when Ctrl-C cuts the waiting short
        for member in session(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def session(leader: int) -> list[psutil.Process]:
    """The processes in a session."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader:
                found.append(psutil.Process(pid))
    return found


def memory(leader: int) -> float:
    """Megabytes that a session's processes take together, shared pages counted once (on Linux)."""
    total = 0
    for member in session(leader):
        with contextlib.suppress(psutil.Error):
            total += member.memory_full_info().pss if MEMORY == "PSS" else member.memory_info().rss
    return total / 1e6


@contextmanager
def peak_memory(leader: int) -> Iterator[Callable[[], float]]:
    """Look at a session's memory time and again; yields a function that says the peak in megabytes."""
    seen, enough = [0.0], threading.Event()

    def watch() -> None:
        while not enough.is_set():
            seen.append(memory(leader))
            enough.wait(SAMPLE_SECONDS)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(seen)
    finally:
        enough.set()
        thread.join()


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def environment() -> dict[str, str]:
    """This environment, but that Python may keep its bytecode, as it does on a server."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


# --- servers


@contextmanager
def server(row: Row, toolkit: Path) -> Iterator[Running]:
    """A row's server, starting; `first_answer` waits until it has started."""
    with tempfile.TemporaryDirectory(prefix="bench-") as temp:  # a short path: sockets are made in it
        folder, ports = Path(temp), free_ports(5)
        command, extra = COMMANDS[row.stack](row, folder, ports, toolkit)
        with running(command, folder, environment() | extra) as server:
            server.url = f"http://{HOST}:{ports[0]}/invocations"
            yield server


def plain(row: Row, folder: Path, ports: list[int], toolkit: Path) -> tuple[list[str], dict[str, str]]:
    """Our own server as the archive starts it; the guide's handlers in one of that kind."""
    if row.way == "guide":
        words = [PROBE, "serve", "--code", row.model / "code", "--model", row.model, "--port", ports[0]]
    else:
        words = [row.model / "code" / "server.py", "--model", row.model, "--port", ports[0]]
    return [sys.executable, *map(str, words)], {}


def ray(row: Row, folder: Path, ports: list[int], toolkit: Path) -> tuple[list[str], dict[str, str]]:
    """Ray Serve as AWS's container starts it, but on a port of ours."""
    config = folder / "config.yaml"
    options = f"http_options:\n  host: {HOST}\n  port: {ports[0]}\n"
    config.write_text((row.model / "config.yaml").read_text() + options)
    return [sys.executable, "-m", "ray.serve.scripts", "run", str(config)], {
        "PYTHONPATH": f"{row.model}:{row.model / 'code'}",
        "SM_MODEL_DIR": str(row.model),
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
    }


def torchserve(row: Row, folder: Path, ports: list[int], toolkit: Path) -> tuple[list[str], dict[str, str]]:
    """TorchServe as the toolkit in AWS's PyTorch container configures and starts it, but on ports of ours."""
    properties = str(folder / "ts.properties")  # the toolkit would write it into /etc
    program = (
        "from sagemaker_pytorch_serving_container import serving, torchserve\n"
        f"torchserve.TS_CONFIG_FILE = {properties!r}\n"
        "serving.main()"
    )
    # Behind the packages that everything here runs on: the toolkit only adds what they lack.
    path = f"{sysconfig.get_path('purelib')}:{toolkit}"
    names = ("TS_INFERENCE_ADDRESS", "TS_MANAGEMENT_ADDRESS", "TS_METRICS_ADDRESS")
    addresses = {name: f"http://{HOST}:{port}" for name, port in zip(names, ports[:3], strict=True)}
    workers = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"} if row.stack == "torchserve-1" else {}
    return [sys.executable, "-c", program], addresses | workers | {
        "PATH": f"{toolkit / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": path,
        "SAGEMAKER_BASE_DIR": str(row.model.parent),  # instead of /opt/ml
        "TS_GRPC_INFERENCE_PORT": str(ports[3]),
        "TS_GRPC_MANAGEMENT_PORT": str(ports[4]),
        "TMPDIR": str(folder),
        "TEMP": str(folder),  # becomes Java's
    }


COMMANDS = {"plain": plain, "ray": ray, "torchserve": torchserve, "torchserve-1": torchserve}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def java() -> bool:
    """Whether TorchServe would find a Java."""
    home = os.environ.get("JAVA_HOME")
    return bool(shutil.which("java", path=f"{home}/bin" if home else None))


def first_answer(server: Running, photo: bytes) -> tuple[float, dict]:
    """Seconds from the start of the process to its first answer, and that answer. Raises BenchError."""
    address = urlsplit(server.url)
    deadline = server.start + START_SECONDS
    while server.process.poll() is None and time.perf_counter() < deadline:
        connection = http.client.HTTPConnection(address.netloc, timeout=START_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("POST", address.path, photo, {"Content-Type": "image/jpeg"})
            reply = connection.getresponse()
            body = reply.read()
            if reply.status == 200:
                return time.perf_counter() - server.start, json.loads(body)
        time.sleep(0.02)
    raise BenchError(f"a server ended or did not answer; its log ends with:\n{tail(server.log)}")


# --- probes


def probe(part: str, **options: object) -> dict:
    """Run one part of probe.py to its end; returns what it says. Raises BenchError."""
    done = subprocess.run(
        probe_command(part, **options), env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"{PROBE.name} {part} failed:\n{done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def probe_command(part: str, **options: object) -> list[str]:
    """The command line of one part of probe.py."""
    words = [sys.executable, str(PROBE), part]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
