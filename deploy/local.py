"""The endpoint on this machine: `python deploy/local.py --model build/pets/model [--stack ray] [COMMAND]`.

Starts the model folder's own server in a process of its own, as the container would (with --docker: the
container itself, as large as an instance), and emulator/sagemaker_proxy.py in front of it, in SageMaker's
place. Serves until Ctrl-C.
With a COMMAND it serves until that ends, and exits with its code; the command's boto3 speaks to this endpoint
(AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME).
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

from common import CommandError, sample_image
from emulator import docker_run
from emulator.process import HOST, RunningServer, environment_without_aws, server_process
from emulator.sagemaker_proxy import PATHS, forward, proxy

START_SECONDS = 120


def main(argv: list[str] | None = None) -> int:
    """Serve one model folder until Ctrl-C, or while a command runs."""
    args = arguments(argv)
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the first is ignored in `command &`
        signal.signal(sign, interrupt)
    try:
        with open_socket(args.port) as listener:
            return serve(args, listener)
    except CommandError as stop:
        print(f"error: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return 130 if args.command else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder that package/export.py wrote")
    add("--port", type=int, default=8080, help="0 takes a free one")
    add("--stack", choices=PATHS, default="plain", help="plain: server.py, ray: Ray Serve")
    add("--docker", action="store_true", help="in the image of serve/Dockerfile, or AWS's for ray")
    add("--instance", help="docker: with as many processors and as much memory as this type")
    add("--memory", type=int, help="docker: with so many MB, as serverless has")
    add("--base", default=os.environ.get("BASE_IMAGE"), help="docker: in place of the Dockerfile's own base")
    add("command", nargs=argparse.REMAINDER, help="serve only while this runs")
    args = parser.parse_args(argv)
    if args.command[:1] == ["--"]:
        del args.command[0]
    return args


def interrupt(*_: object) -> None:
    """SIGTERM, and a terminal that is closed, end this as Ctrl-C does."""
    raise KeyboardInterrupt


def serve(args: argparse.Namespace, listener: socket.socket) -> int:
    """Start the container's process, stand before it, and run the command (or wait)."""
    model = args.model.resolve()
    if not (model / "model.json").is_file():
        raise CommandError(2, f"{model} is not a packaged model: run `invoke package` first")
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    start = time.monotonic()
    # In a container AWS's adapter is there, and stands between SageMaker's paths and Ray's.
    paths = "plain" if args.docker else args.stack
    with container(model, args) as running, proxy(listener, running.url, paths):
        wait_until_it_answers(running, PATHS[paths][1])
        how = f"{args.stack}{' in Docker' if args.docker else ''}, ready in {time.monotonic() - start:.1f} s"
        print(f"{os.path.relpath(model)} answers at {url} ({how})", flush=True)
        if args.command:
            return run(args.command, aws_environment(url))
        print(f"ask it: python client/cli.py PICTURE... --url {url}", flush=True)
        print(f"log: {running.log}; Ctrl-C ends it", flush=True)
        running.process.wait()
        raise CommandError(
            3, f"the server ended by itself{ending(running)}; its log ends with:\n{tail(running.log)}"
        )


def container(model: Path, args: argparse.Namespace) -> AbstractContextManager[RunningServer]:
    """The server that the command line asks for."""
    if args.docker:
        docker_run.check_engine()
        return docker_run.container(
            model, args.stack, args.base, docker_run.size_flags(args.instance, args.memory)
        )
    return server_process(model, args.stack)


def run(command: list[str], environment: dict[str, str]) -> int:
    """The command's exit code."""
    try:
        return subprocess.call(command, env=environment)
    except OSError as error:
        raise CommandError(2, f"{command[0]} cannot be run: {error.strerror}") from None


def aws_environment(url: str) -> dict[str, str]:
    """This environment with boto3's sagemaker-runtime pointed here, and no real credentials in it."""
    return environment_without_aws() | {
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def wait_until_it_answers(running: RunningServer, path: str) -> None:
    """Wait until a picture is answered: Ray's health check says yes before there is a model."""
    deadline = time.monotonic() + START_SECONDS
    process = running.process
    while process.poll() is None and time.monotonic() < deadline:
        if forward("POST", running.url + path, 5, sample_image())[0] == 200:
            return
        time.sleep(0.1)
    ended = process.poll() is not None
    what = f"ended{ending(running)}" if ended else f"did not answer within {START_SECONDS} s"
    raise CommandError(1, f"the server {what}; its log ends with:\n{tail(running.log)}")


def ending(running: RunningServer) -> str:
    """What an exit code says by itself: a container over its memory is killed, without a word in its log."""
    killed = running.process.returncode in (137, -9)
    return ", killed from outside: was its memory too small?" if killed else ""


def tail(log: Path, lines: int = 20) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def open_socket(port: int) -> socket.socket:
    """A listening socket on loopback; Stop if the port is taken."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"port {port} cannot be had ({reason}): choose another with --port, or 0 for a free one"
        raise CommandError(2, text) from None


if __name__ == "__main__":
    raise SystemExit(main())
