"""The container on this machine: `docker run IMAGE serve`, as SageMaker runs it and as large as on AWS."""

import json
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import context
from hourly import size_of
from processes import HOST, Running, free_port, start, stop_session
from stop import Stop

# AWS's own version as on SageMaker, from where no account is needed.
RAY_TAG = json.loads(Path(__file__).with_name("images.json").read_text())["tags"]["cpu"]
RAY_IMAGE = f"public.ecr.aws/deep-learning-containers/ray:{RAY_TAG}"


@contextmanager
def running(model: Path, stack: str, base: str | None, limits: list[str]) -> Iterator[Running]:
    """The image of serve/Dockerfile for `plain`, AWS's for `ray`, with the model as it is mounted on AWS.

    `base` is context.build's; `limits` are `docker run`'s flags. Raises Stop.
    """
    image = context.build(context.here(), base) if stack == "plain" else context.pull(RAY_IMAGE)
    name, port = f"local-endpoint-{uuid.uuid4().hex[:8]}", free_port()
    sealed = ["--read-only", "--tmpfs", "/tmp"] if stack == "plain" else []  # noqa: S108 - the container's own
    mount = ["--mount", f"type=bind,source={model},target=/opt/ml/model,readonly"]
    command = ["docker", "run", "--rm", "--name", name, *limits, *sealed, *mount, *published(port, stack)]
    with tempfile.TemporaryDirectory(prefix="local-endpoint-") as folder, ExitStack() as stop:
        process = start([*command, image, "serve"], Path(folder), dict(os.environ))
        stop.callback(subprocess.run, ["docker", "rm", "--force", name], capture_output=True, check=False)
        stop.callback(stop_session, process)
        yield Running(process, f"http://{HOST}:{port}", Path(folder) / "log")


def check_engine() -> None:
    """Raises Stop where no Docker answers."""
    if not context.is_there_docker():
        raise Stop(3, "no Docker engine answers here: start one, or leave --docker out")


def published(port: int, stack: str) -> list[str]:
    """`docker run`'s flags that make the container answer on a port of this machine. Raises Stop."""
    if context.has_network():
        return ["--publish", f"{HOST}:{port}:8080"]
    if stack == "ray":  # whose adapter knows one port
        raise Stop(3, "AWS's Ray image needs a Docker engine with a bridge network: this one has none")
    return ["--network", "host", "--env", f"SAGEMAKER_BIND_TO_PORT={port}"]


def limits(instance: str | None, memory: int | None) -> list[str]:
    """`docker run`'s flags for an instance type's size, or for `memory` MB alone; nothing for neither."""
    if memory:
        return bounded(memory)
    if not instance:
        return []
    vcpus, gibibytes = size_of(instance)
    here = context.processors()
    if vcpus > here:
        print(f"note: {instance} has {vcpus} processors, Docker here {here}", flush=True)
    return [*bounded(1024 * gibibytes), "--cpus", str(min(vcpus, here))]


def bounded(memory: int) -> list[str]:
    """A limit of so many MB, swap included."""
    return ["--memory", f"{memory}m", "--memory-swap", f"{memory}m"]
