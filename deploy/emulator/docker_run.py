"""The container on this machine: `docker run IMAGE serve`, as SageMaker runs it and as large as on AWS."""

import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aws import pricing
from common import CommandError
from ecr import docker_build
from emulator.process import HOST, RunningServer, free_port, start_process, stop_session


@contextmanager
def container(model: Path, stack: str, base: str | None, flags: list[str]) -> Iterator[RunningServer]:
    """The image of serve/Dockerfile for `plain`, AWS's for `ray`, with the model mounted as on AWS.

    `base` is docker_build.build's; `flags` are passed to `docker run`. Raises CommandError.
    """
    if stack == "plain":
        image = docker_build.build(docker_build.host_architecture(), base)
    else:
        image = docker_build.pull(docker_build.RAY_IMAGE)
    name, port = f"local-endpoint-{uuid.uuid4().hex[:8]}", free_port()
    read_only = ["--read-only", "--tmpfs", "/tmp"] if stack == "plain" else []  # noqa: S108 - the container's own
    mount = ["--mount", f"type=bind,source={model},target=/opt/ml/model,readonly"]
    command = ["docker", "run", "--rm", "--name", name, *flags, *read_only, *mount, *port_flags(port, stack)]
    with tempfile.TemporaryDirectory(prefix="local-endpoint-") as folder, ExitStack() as stop:
        process = start_process([*command, image, "serve"], Path(folder), dict(os.environ))
        stop.callback(subprocess.run, ["docker", "rm", "--force", name], capture_output=True, check=False)
        stop.callback(stop_session, process)
        yield RunningServer(process, f"http://{HOST}:{port}", Path(folder) / "log")


def check_engine() -> None:
    """Raise CommandError if no Docker engine responds."""
    if not docker_build.is_docker_running():
        raise CommandError(3, "no Docker engine responds: start one, or leave --docker out")


def port_flags(port: int, stack: str) -> list[str]:
    """`docker run`'s flags that make the container listen on a port of this machine. Raises CommandError."""
    if docker_build.has_bridge_network():
        return ["--publish", f"{HOST}:{port}:8080"]
    if stack == "ray":  # the adapter in AWS's image listens on 8080 only
        text = "AWS's Ray image needs a Docker engine with a bridge network"
        raise CommandError(3, f"{text}: this one has none")
    return ["--network", "host", "--env", f"SAGEMAKER_BIND_TO_PORT={port}"]


def size_flags(instance: str | None, memory: int | None) -> list[str]:
    """`docker run`'s flags for an instance type's size, or for `memory` MB alone; none for neither."""
    if memory:
        return memory_flags(memory)
    if not instance:
        return []
    if not pricing.can_estimate():
        print(f"note: the container is not limited to {instance}'s size: cost/ is not here", flush=True)
        return []
    vcpus, gibibytes = pricing.instance_size(instance)
    here = docker_build.docker_cpus()
    if vcpus > here:
        print(f"note: {instance} has {vcpus} CPUs, Docker on this machine {here}", flush=True)
    return [*memory_flags(1024 * gibibytes), "--cpus", str(min(vcpus, here))]


def memory_flags(memory: int) -> list[str]:
    """A limit of so many MB, swap included."""
    return ["--memory", f"{memory}m", "--memory-swap", f"{memory}m"]
