"""The image of serve/Dockerfile: its files, a tag made from their content, and building it with Docker."""

import hashlib
import json
import os
import platform
import re
import subprocess
from pathlib import Path

from common import CommandError

SERVE_FOLDER = Path(__file__).resolve().parents[2] / "serve"
LOCAL_REPOSITORY = "fastai-sagemaker"  # the image's name on this machine, without its tag
# The same version as on SageMaker, from the registry that needs no AWS account.
RAY_TAG = json.loads(Path(__file__).with_name("images.json").read_text())["tags"]["cpu"]
RAY_IMAGE = f"public.ecr.aws/deep-learning-containers/ray:{RAY_TAG}"


def build_files() -> dict[str, Path]:
    """The files that the build reads, by name: what serve/.dockerignore includes, and the Dockerfile."""
    return {file.name: file for file in sorted(SERVE_FOLDER.iterdir()) if is_build_file(file.name)}


def is_build_file(name: str) -> bool:
    """Whether the build reads a file of serve/."""
    return name in ("Dockerfile", ".dockerignore", "requirements.lock") or name.endswith(".py")


def instance_architecture(instance: str) -> str:
    """Docker's name for an instance type's processor: ml.c7g.large and ml.g5g.xlarge are Graviton (Arm)."""
    return "arm64" if re.match(r"ml\.[a-z]+\d+g[a-z]*\.", instance) else "amd64"


def host_architecture() -> str:
    """Docker's name for this machine's processor."""
    return "arm64" if platform.machine() in ("arm64", "aarch64") else "amd64"


def content_tag(architecture: str, base: str | None = None) -> str:
    """The image's tag, such as 3f2a9c0d1e4b-amd64: equal files and an equal base have equal tags."""
    content = hashlib.sha256((base or "").encode())
    for name, file in build_files().items():
        content.update(f"\0{name}\0".encode() + file.read_bytes())
    return f"{content.hexdigest()[:12]}-{architecture}"


def build(architecture: str, base: str | None = None) -> str:
    """Build the image with this machine's Docker, unless it exists; its local name. Raises CommandError.

    `base` replaces the Dockerfile's own base image.
    """
    name = f"{LOCAL_REPOSITORY}:{content_tag(architecture, base)}"
    if has_image(name):
        return name
    flags = ["--platform", f"linux/{architecture}", "--tag", name, *build_network()]
    flags += ["--build-arg", f"BASE={base}"] if base else []
    print(f"building {name} from serve/Dockerfile{f' on {base}' if base else ''}", flush=True)
    command = ["docker", "build", *flags, str(SERVE_FOLDER)]
    if subprocess.run(command, env=without_attestations(), check=False).returncode:
        raise CommandError(3, f"Docker could not build {name}: its output above says why")
    return name


def pull(image: str) -> str:
    """Pull an image with Docker's own progress bars, unless it exists; its name. Raises CommandError."""
    if not has_image(image) and subprocess.run(["docker", "pull", image], check=False).returncode:
        raise CommandError(3, f"Docker could not pull {image}: its output above says why")
    return image


def is_docker_running() -> bool:
    """Whether a Docker engine responds."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def docker_cpus() -> int:
    """The engine's number of CPUs. On macOS and Windows that is its virtual machine's, not the laptop's."""
    done = subprocess.run(["docker", "info", "--format", "{{.NCPU}}"], capture_output=True, check=False)
    return int(done.stdout) if done.stdout.strip().isdigit() else os.cpu_count() or 1


def has_image(name: str) -> bool:
    """Whether this machine's Docker has an image."""
    command = ["docker", "image", "inspect", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def has_bridge_network() -> bool:
    """Whether the engine has Docker's default network; without it, containers use the host's."""
    command = ["docker", "network", "inspect", "bridge"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build_network() -> list[str]:
    """`docker build`'s flags for an engine without a bridge network."""
    return [] if has_bridge_network() else ["--network", "host"]


def without_attestations() -> dict[str, str]:
    """An environment for `docker build` that pushes a single manifest.

    BuildKit adds provenance attestations by default. They turn the manifest into a list, which SageMaker
    rejects.
    """
    return os.environ | {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
