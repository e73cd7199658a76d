"""The servers that serving.py compares: starting them, their first answer, their memory, stopping them."""

import contextlib
import http.client
import json
import os
import shutil
import signal
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
MEASURE = Path(__file__).with_name("measure.py")
HOST = "127.0.0.1"
START_SECONDS = 180
STOP_SECONDS = 35  # SageMaker sends SIGTERM, and SIGKILL 30 s later
KILL_SECONDS = 10  # SIGKILL takes effect at once, unless a process hangs in the kernel
SAMPLE_SECONDS = 0.5  # between two readings of the memory: each takes some milliseconds per process
MEMORY = "PSS" if sys.platform == "linux" else "RSS"  # other systems do not tell how pages are shared


class BenchError(Exception):
    """Why a benchmark cannot be run; `code` is the exit code."""

    def __init__(self, message: str, code: int = 3) -> None:
        super().__init__(message)
        self.code = code


def progress(line: str) -> None:
    """Print a line on stderr: stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Row:
    """A row of the table: whose handlers ("guide", "exact" or "fast"), on which stack, from which folder."""

    way: str
    stack: str
    model: Path


@dataclass
class Running:
    """A process that leads its own session, its start (time.perf_counter), its log, where to post to."""

    process: subprocess.Popen
    start: float
    log: Path
    url: str = ""


# --- one process and all its descendants


@contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str], stdout: int | None = None
) -> Iterator[Running]:
    """Start a command in a session of its own; on exit stop it, and whatever else is in that session."""
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
    """SIGTERM to the leader, then SIGKILL to the rest: the helpers of Ray and TorchServe outlive it.

    Ctrl-C cuts the wait for the leader short; no signal interrupts the killing.
    """
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        with signals_ignored():
            deadline = time.monotonic() + KILL_SECONDS
            while (members := session(process.pid)) and time.monotonic() < deadline:
                for member in members:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                time.sleep(0.01)  # until they are gone: none may disturb the next measurement
            process.wait()
            if process.stdout:
                process.stdout.close()


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore Ctrl-C and requests to stop, for a moment. Python sets handlers only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def session(leader: int) -> list[psutil.Process]:
    """The processes in a session, without zombies: those stay where the container's init reaps nothing."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader and (member := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                members.append(member)
    return members


def memory(leader: int) -> float:
    """Megabytes of a session's processes together; on Linux, pages that they share count once."""
    total = 0
    for member in session(leader):
        with contextlib.suppress(psutil.Error):
            total += member.memory_full_info().pss if MEMORY == "PSS" else member.memory_info().rss
    return total / 1e6


@contextmanager
def peak_memory(leader: int) -> Iterator[Callable[[], float]]:
    """Sample a session's memory; yields a function that returns the peak so far in megabytes."""
    samples, stopped = [0.0], threading.Event()

    def sample() -> None:
        while not stopped.is_set():
            samples.append(memory(leader))
            stopped.wait(SAMPLE_SECONDS)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: max(samples)
    finally:
        stopped.set()
        thread.join()


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


# --- environments


def environment() -> dict[str, str]:
    """This environment, but Python may write bytecode: without it, each start compiles what it imports."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def server_environment(model: Path) -> dict[str, str]:
    """What the server of a packaged model gets: the same variables as from deploy's local endpoint.

    So cold starts and memory are those of what is deployed. deploy/emulator/process.py says why each is set.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    return inherited | {
        "PYTHONPATH": f"{model}:{model / 'code'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SM_MODEL_DIR": str(model),
        "MALLOC_MMAP_THRESHOLD_": "4194304",
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def row_environment(row: Row) -> dict[str, str]:
    """A row's environment. The guide's containers ran without MALLOC_MMAP_THRESHOLD_."""
    return environment() if row.way == "guide" else server_environment(row.model)


# --- servers


@contextmanager
def server(row: Row, toolkit: Path) -> Iterator[Running]:
    """Start a row's server; `first_answer` waits until it answers."""
    with tempfile.TemporaryDirectory(prefix="bench-") as temp:  # a short path: Ray makes sockets in it
        folder, ports = Path(temp), free_ports(5)
        command, extra = COMMANDS[row.stack](row, folder, ports, toolkit)
        with running(command, folder, row_environment(row) | extra) as server:
            server.url = f"http://{HOST}:{ports[0]}/invocations"
            yield server


def plain(row: Row, folder: Path, ports: list[int], toolkit: Path) -> tuple[list[str], dict[str, str]]:
    """Our own server as the archive starts it; for the guide's handlers, a minimal one."""
    if row.way == "guide":
        words = [MEASURE, "serve", "--code", row.model / "code", "--model", row.model, "--port", ports[0]]
    else:
        words = [row.model / "code" / "server.py", "--model", row.model, "--port", ports[0]]
    return [sys.executable, *map(str, words)], {}


def ray(row: Row, folder: Path, ports: list[int], toolkit: Path) -> tuple[list[str], dict[str, str]]:
    """Ray Serve as AWS's container starts it, but on one of these ports."""
    config = folder / "config.yaml"
    options = f"http_options:\n  host: {HOST}\n  port: {ports[0]}\n"
    config.write_text((row.model / "config.yaml").read_text() + options)
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
    return command, {"RAY_TMPDIR": str(folder)}


def torchserve(row: Row, folder: Path, ports: list[int], toolkit: Path) -> tuple[list[str], dict[str, str]]:
    """TorchServe as the toolkit in AWS's PyTorch container configures and starts it, but on these ports."""
    properties = str(folder / "ts.properties")  # the toolkit would write into /etc/sagemaker-ts.properties
    program = (
        "from sagemaker_pytorch_serving_container import serving, torchserve\n"
        f"torchserve.TS_CONFIG_FILE = {properties!r}\n"
        "serving.main()"
    )
    # Behind the packages of .venv: the toolkit's folder only adds what they lack.
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
        "TEMP": str(folder),  # the toolkit passes it to Java as java.io.tmpdir
    }


COMMANDS = {"plain": plain, "ray": ray, "torchserve": torchserve, "torchserve-1": torchserve}


def free_ports(count: int) -> list[int]:
    """Free ports: Ray Serve, TorchServe and Docker must be told theirs."""
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in sockets]


def has_java() -> bool:
    """Whether TorchServe would find a Java."""
    home = os.environ.get("JAVA_HOME")
    return bool(shutil.which("java", path=f"{home}/bin" if home else None))


def first_answer(server: Running, photo: bytes) -> tuple[float, dict]:
    """The cold start in seconds, from the start of the process to its first answer, and that answer.

    Raises BenchError if the server exits, or does not answer within START_SECONDS.
    """
    address = urlsplit(server.url)
    deadline = server.start + START_SECONDS
    while server.process.poll() is None and time.perf_counter() < deadline:
        connection = http.client.HTTPConnection(address.netloc, timeout=START_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("POST", address.path, photo, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = response.read()
            if response.status == 200:
                return time.perf_counter() - server.start, json.loads(body)
        time.sleep(0.02)
    raise BenchError(f"a server exited or did not answer; its log ends with:\n{tail(server.log)}")


# --- measurements in processes of their own


def measure_in_subprocess(part: str, **options: object) -> dict:
    """Run one part of measure.py until it exits; returns what it printed last. Raises BenchError."""
    done = subprocess.run(
        measure_command(part, **options), env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"{MEASURE.name} {part} failed:\n{done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_command(part: str, **options: object) -> list[str]:
    """The command line of one part of measure.py."""
    words = [sys.executable, str(MEASURE), part]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
