"""The endpoint on this machine: `python deploy/local.py --model build/pets/model [--stack ray] [COMMAND]`.

Starts the model folder's own server in a process of its own, as the container would, and front.py before it
in SageMaker's place. Serves until Ctrl-C. With a COMMAND it serves until that ends, and exits with its code;
the command's boto3 speaks to this endpoint (AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME).
"""

import argparse
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from front import PATHS, ask, front

HOST = "127.0.0.1"
START_SECONDS = 120
STOP_SECONDS = 35  # SageMaker sends SIGTERM, and SIGKILL 30 s later


class LocalError(Exception):
    """Something that the user can mend; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Serve one model folder until Ctrl-C, or while a command runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder that package/export.py wrote")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--stack", choices=PATHS, default="plain", help="plain: server.py, ray: Ray Serve")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="serve only while this runs")
    args = parser.parse_args(argv)
    if args.command[:1] == ["--"]:
        del args.command[0]
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, interrupt)
    try:
        with open_socket(args.port) as listener:
            return serve(args.model.resolve(), args.stack, listener, args.command)
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130 if args.command else 0


def interrupt(*_: object) -> None:
    """SIGTERM, and a terminal that is closed, end this as Ctrl-C does."""
    raise KeyboardInterrupt


def serve(model: Path, stack: str, listener: socket.socket, command: list[str]) -> int:
    """Start the container's process, stand before it, and run `command` (or wait)."""
    if not (model / "model.json").is_file():
        raise LocalError(f"{model} is not a packaged model: run `invoke package` first", 2)
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    start = time.monotonic()
    with container(model, stack) as (process, backend, log), front(listener, backend, stack):
        wait_until_it_answers(process, backend + PATHS[stack][1], log)
        print(
            f"{os.path.relpath(model)} answers at {url} ({stack}, ready in {time.monotonic() - start:.1f} s)",
            flush=True,
        )
        if command:
            return run(command, aws_environment(url))
        print(f"ask it: python client/cli.py PICTURE... --url {url}\nlog: {log}; Ctrl-C ends it", flush=True)
        process.wait()
        raise LocalError(f"the server ended by itself; its log ends with:\n{tail(log)}", 3)


def run(command: list[str], environment: dict[str, str]) -> int:
    """The command's exit code."""
    try:
        return subprocess.call(command, env=environment)
    except OSError as error:
        raise LocalError(f"{command[0]} cannot be run: {error.strerror}", 2) from None


def aws_environment(url: str) -> dict[str, str]:
    """This environment with boto3's sagemaker-runtime pointed here, and no real credentials in it."""
    return without_aws() | {
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def without_aws() -> dict[str, str]:
    """This environment without the user's AWS settings and credentials."""
    return {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}


# --- the container's process


@contextmanager
def container(model: Path, stack: str) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """The model's own server in a session of its own: (process, its address, its log file)."""
    with open_socket(0) as free:
        port = free.getsockname()[1]
    environment = without_aws() | {
        "PYTHONPATH": f"{model}:{model / 'code'}",  # as in the container
        "PYTHONDONTWRITEBYTECODE": "1",  # the model folder stays what was packaged
        "SM_MODEL_DIR": str(model),
        "RAY_ADDRESS": "local",  # a cluster of its own, whatever else runs here
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory(prefix="local-endpoint-") as folder, ExitStack() as stop:
        log = Path(folder) / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                server_command(model, stack, port, Path(folder)),
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stop.callback(stop_session, process)
        yield process, f"http://{HOST}:{port}", log


def server_command(model: Path, stack: str, port: int, folder: Path) -> list[str]:
    """The command line that serves `model` on `port`."""
    if stack == "plain":
        return [sys.executable, str(model / "code" / "server.py"), "--model", str(model), "--port", str(port)]
    config = folder / "config.yaml"  # the packaged one, but on our port
    options = f"http_options:\n  host: {HOST}\n  port: {port}\n"
    config.write_text((model / "config.yaml").read_text() + options)
    return [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]


def wait_until_it_answers(process: subprocess.Popen, url: str, log: Path) -> None:
    """Wait until a picture is answered: Ray's health check says yes before there is a model."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if ask("POST", url, 5, grey_picture())[0] == 200:
            return
        time.sleep(0.1)
    what = "ended" if process.poll() is not None else f"did not answer within {START_SECONDS} s"
    raise LocalError(f"the server {what}; its log ends with:\n{tail(log)}", 1)


def grey_picture() -> bytes:
    """A small PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(out, "PNG")
    return out.getvalue()


def tail(log: Path, lines: int = 20) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def stop_session(process: subprocess.Popen) -> None:
    """SIGTERM to the server, then SIGKILL to the rest of its session: Ray's helpers outlive their master."""
    import psutil

    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)  # an impatient second Ctrl-C would leave processes behind
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait()


def open_socket(port: int) -> socket.socket:
    """A listening socket on loopback; LocalError if the port is taken."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"port {port} cannot be had ({reason}): choose another with --port, or 0 for a free one"
        raise LocalError(text, 2) from None


if __name__ == "__main__":
    raise SystemExit(main())
