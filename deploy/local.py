"""The endpoint on this machine: `python deploy/local.py --model build/pets/model [--stack ray] [COMMAND]`.

Starts the model folder's own server in a process of its own (with --docker: in its container, as large as an
instance), and in front of it a proxy that stands in for SageMaker. Serves until Ctrl-C, or while a COMMAND
runs, and exits with its exit code. The command's boto3 uses this endpoint, by
AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from common import CommandError, Parser, sample_picture
from emulator import docker_run
from emulator.process import HOST, RunningServer, environment_without_aws, server_process
from emulator.sagemaker_proxy import PATHS, forward, proxy

START_SECONDS = 120


def main(argv: list[str] | None = None) -> int:
    """Serve one model folder until Ctrl-C, or while a command runs; returns the exit code."""
    args = arguments(argv)
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell ignores SIGINT in `command &`
        signal.signal(sign, interrupt)
    try:
        with open_socket(args.port) as listener:
            return serve(args, listener)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130 if args.command else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description="Serve a packaged model on this machine as SageMaker would.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder that package/export.py wrote")
    add("--port", type=int, default=8080, help="0 for a free one")
    add("--stack", choices=PATHS, default="plain", help="plain: server.py, ray: Ray Serve")
    add("--docker", action="store_true", help="in the image of serve/Dockerfile, or AWS's for ray")
    add("--instance", help="docker: with the CPUs and the memory of this type")
    add("--memory", type=int, help="docker: with so many MB, as on serverless")
    add(
        "--base",
        default=os.environ.get("BASE_IMAGE"),
        help="docker: replaces the Dockerfile's own base image",
    )
    add("command", nargs=argparse.REMAINDER, help="serve only while this runs")
    args = parser.parse_args(argv)
    if args.command[:1] == ["--"]:
        del args.command[0]
    return args


def interrupt(*_: object) -> None:
    """Handle SIGTERM, and SIGHUP of a closed terminal, like Ctrl-C."""
    raise KeyboardInterrupt


def serve(args: argparse.Namespace, listener: socket.socket) -> int:
    """Start the server and the proxy, and run the command (or wait). Raises CommandError."""
    model = args.model.resolve()
    if not (model / "model.json").is_file():
        raise CommandError(2, f"{model} is not a packaged model: run `invoke package` first")
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    start = time.monotonic()
    # In the Ray container, AWS's adapter maps SageMaker's paths to Ray's.
    paths = "plain" if args.docker else args.stack
    with start_server(model, args) as running, proxy(listener, running.url, paths):
        wait_until_ready(running, PATHS[paths][1])
        how = f"{args.stack}{' in Docker' if args.docker else ''}, ready in {time.monotonic() - start:.1f} s"
        print(f"{os.path.relpath(model)} answers at {url} ({how})", flush=True)
        if args.command:
            return run(args.command, aws_environment(url))
        print(f"query: python client/cli.py PICTURE... --url {url}", flush=True)
        print(f"log: {running.log}; stop with Ctrl-C", flush=True)
        running.process.wait()
        text = f"the server exited{exit_hint(running)}"
        raise CommandError(3, f"{text}; its log ends with:\n{tail(running.log)}")


def start_server(model: Path, args: argparse.Namespace) -> AbstractContextManager[RunningServer]:
    """The server of the command line's flags. Raises CommandError."""
    if not args.docker:
        return server_process(model, args.stack)
    docker_run.check_engine()
    flags = docker_run.size_flags(args.instance, args.memory)
    return docker_run.container(model, args.stack, args.base, flags)


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run the command; returns its exit code. Raises CommandError if it cannot be started."""
    try:
        return subprocess.call(command, env=environment)
    except OSError as error:
        raise CommandError(2, f"{command[0]} could not be started: {error.strerror}") from None


def aws_environment(url: str) -> dict[str, str]:
    """This process's environment without real credentials, with this endpoint as sagemaker-runtime."""
    return environment_without_aws() | {
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def wait_until_ready(running: RunningServer, path: str) -> None:
    """Wait until a picture is answered: Ray's health check passes before the model is loaded.

    Raises CommandError if the server exits, or after START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    process = running.process
    while process.poll() is None and time.monotonic() < deadline:
        if forward("POST", running.url + path, 5, sample_picture())[0] == 200:
            return
        time.sleep(0.1)
    exited = process.poll() is not None
    what = f"exited{exit_hint(running)}" if exited else f"did not respond within {START_SECONDS} s"
    raise CommandError(1, f"the server {what}; its log ends with:\n{tail(running.log)}")


def exit_hint(running: RunningServer) -> str:
    """What SIGKILL's exit code suggests: a container over its memory limit is killed and logs nothing."""
    killed = running.process.returncode in (137, -signal.SIGKILL)
    return ", killed by the system: was its memory too small?" if killed else ""


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def open_socket(port: int) -> socket.socket:
    """A listening socket on loopback. Raises CommandError if the port is in use or not a port."""
    reason = "not from 0 to 65535"
    # create_server itself does not close its socket for a number that is not a port.
    if 0 <= port <= 65535:
        try:
            return socket.create_server((HOST, port))
        except OSError as error:
            reason = error.strerror or str(error)
    text = f"port {port} could not be opened ({reason})"
    raise CommandError(2, f"{text}: choose another with --port, or 0 for a free one")


if __name__ == "__main__":
    raise SystemExit(main())
