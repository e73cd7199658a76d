"""The container on this machine: `docker run IMAGE serve`, as SageMaker runs it and as large as on AWS."""

import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aws.pricing import instance_size
from common import CommandError
from ecr import docker_build
from emulator.process import HOST, RunningServer, free_port, start_process, stop_session


@contextmanager
def container(model: Path, stack: str, base: str | None, limits: list[str]) -> Iterator[RunningServer]:
    """The image of serve/Dockerfile for `plain`, AWS's for `ray`, with the model as it is mounted on AWS.

    `base` is context.build's; `limits` are `docker run`'s flags. Raises Stop.
    """
    image = (
        docker_build.build(docker_build.host_architecture(), base)
        if stack == "plain"
        else docker_build.pull(docker_build.RAY_IMAGE)
    )
    name, port = f"local-endpoint-{uuid.uuid4().hex[:8]}", free_port()
    sealed = ["--read-only", "--tmpfs", "/tmp"] if stack == "plain" else []  # noqa: S108 - the container's own
    mount = ["--mount", f"type=bind,source={model},target=/opt/ml/model,readonly"]
    command = ["docker", "run", "--rm", "--name", name, *limits, *sealed, *mount, *port_flags(port, stack)]
    with tempfile.TemporaryDirectory(prefix="local-endpoint-") as folder, ExitStack() as stop:
        process = start_process([*command, image, "serve"], Path(folder), dict(os.environ))
        stop.callback(subprocess.run, ["docker", "rm", "--force", name], capture_output=True, check=False)
        stop.callback(stop_session, process)
        yield RunningServer(process, f"http://{HOST}:{port}", Path(folder) / "log")


def check_engine() -> None:
    """Raises Stop where no Docker answers."""
    if not docker_build.is_docker_running():
        raise CommandError(3, "no Docker engine answers here: start one, or leave --docker out")


def port_flags(port: int, stack: str) -> list[str]:
    """`docker run`'s flags that make the container answer on a port of this machine. Raises Stop."""
    if docker_build.has_bridge_network():
        return ["--publish", f"{HOST}:{port}:8080"]
    if stack == "ray":  # whose adapter knows one port
        raise CommandError(
            3, "AWS's Ray image needs a Docker engine with a bridge network: this one has none"
        )
    return ["--network", "host", "--env", f"SAGEMAKER_BIND_TO_PORT={port}"]


def size_flags(instance: str | None, memory: int | None) -> list[str]:
    """`docker run`'s flags for an instance type's size, or for `memory` MB alone; nothing for neither."""
    if memory:
        return memory_flags(memory)
    if not instance:
        return []
    vcpus, gibibytes = instance_size(instance)
    here = docker_build.docker_cpus()
    if vcpus > here:
        print(f"note: {instance} has {vcpus} processors, Docker here {here}", flush=True)
    return [*memory_flags(1024 * gibibytes), "--cpus", str(min(vcpus, here))]


def memory_flags(memory: int) -> list[str]:
    """A limit of so many MB, swap included."""
    return ["--memory", f"{memory}m", "--memory-swap", f"{memory}m"]
