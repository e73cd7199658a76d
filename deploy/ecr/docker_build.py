"""The image of serve/Dockerfile: what goes into it, its name by content, and building it with Docker here."""

import hashlib
import json
import os
import platform
import re
import subprocess
from pathlib import Path

from common import CommandError

SERVE_FOLDER = Path(__file__).resolve().parents[2] / "serve"
LOCAL_REPOSITORY = "fastai-sagemaker"  # the image's repository on this machine
# The version that AWS has on SageMaker, from where no account is needed.
RAY_TAG = json.loads(Path(__file__).with_name("images.json").read_text())["tags"]["cpu"]
RAY_IMAGE = f"public.ecr.aws/deep-learning-containers/ray:{RAY_TAG}"


def build_files() -> dict[str, Path]:
    """All that the build reads, by name: what serve/.dockerignore lets through, and the Dockerfile."""
    return {file.name: file for file in sorted(SERVE_FOLDER.iterdir()) if is_build_file(file.name)}


def is_build_file(name: str) -> bool:
    """Whether the build reads a file of serve/."""
    return name in ("Dockerfile", ".dockerignore", "requirements.lock") or name.endswith(".py")


def instance_architecture(instance: str) -> str:
    """What Docker calls the processor of an instance type: ml.c7g.large and ml.g5g.xlarge are Graviton."""
    return "arm64" if re.match(r"ml\.[a-z]+\d+g[a-z]*\.", instance) else "amd64"


def host_architecture() -> str:
    """What Docker calls this machine's processor."""
    return "arm64" if platform.machine() in ("arm64", "aarch64") else "amd64"


def content_tag(architecture: str, base: str | None = None) -> str:
    """The image's name by its content, such as 3f2a9c0d1e4b-amd64: equal files make equal names."""
    content = hashlib.sha256((base or "").encode())
    for name, file in build_files().items():
        content.update(f"\0{name}\0".encode() + file.read_bytes())
    return f"{content.hexdigest()[:12]}-{architecture}"


def build(architecture: str, base: str | None = None) -> str:
    """Build the image with this machine's Docker, unless it is here; its local name. Raises Stop.

    `base` takes the place of the Dockerfile's own base image.
    """
    name = f"{LOCAL_REPOSITORY}:{content_tag(architecture, base)}"
    if has_image(name):
        return name
    words = ["--platform", f"linux/{architecture}", "--tag", name, *build_network()]
    words += ["--build-arg", f"BASE={base}"] if base else []
    print(f"building {name} from serve/Dockerfile{f' on {base}' if base else ''}", flush=True)
    done = subprocess.run(
        ["docker", "build", *words, str(SERVE_FOLDER)], env=without_attestations(), check=False
    )
    if done.returncode:
        raise CommandError(
            3, f"Docker could not build {name}: what it printed says why; then repeat the command"
        )
    return name


def pull(image: str) -> str:
    """Fetch an image, unless it is here, for all to see; its name. Raises Stop."""
    if not has_image(image) and subprocess.run(["docker", "pull", image], check=False).returncode:
        raise CommandError(
            3, f"Docker could not fetch {image}: what it printed says why; then repeat the command"
        )
    return image


def is_docker_running() -> bool:
    """Whether a Docker engine answers here."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def docker_cpus() -> int:
    """How many the engine has, which on a laptop is a virtual machine of its own."""
    done = subprocess.run(["docker", "info", "--format", "{{.NCPU}}"], capture_output=True, check=False)
    return int(done.stdout) if done.stdout.strip().isdigit() else os.cpu_count() or 1


def has_image(name: str) -> bool:
    """Whether this machine's Docker has an image."""
    return (
        subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode == 0
    )


def has_bridge_network() -> bool:
    """Whether the engine has a network of its own, or containers must share this machine's."""
    found = subprocess.run(["docker", "network", "inspect", "bridge"], capture_output=True, check=False)
    return found.returncode == 0


def build_network() -> list[str]:
    """The build's network, where the engine has none of its own."""
    return [] if has_bridge_network() else ["--network", "host"]


def without_attestations() -> dict[str, str]:
    """The environment of a build that makes one plain manifest: SageMaker takes no list with attestations."""
    return os.environ | {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
