"""The container image and the AMI for an instance type; combinations known to fail are rejected."""

import json
import re
from pathlib import Path

from aws.client import Aws
from common import CommandError
from ecr import docker_build

TABLE = json.loads(Path(__file__).with_name("images.json").read_text())
SERVERLESS_MAX_BYTES = 10e9  # of an image, uncompressed (SageMaker's quota for serverless inference)
OTHER_ACCELERATOR = r"ml\.(inf|trn)\d"  # Inferentia and Trainium


def is_gpu(instance: str) -> bool:
    """Whether an instance type has an NVIDIA GPU: ml.g5.xlarge, ml.p4d.24xlarge."""
    return bool(re.match(r"ml\.[gp]\d", instance))


def image_uri(aws: Aws, stack: str, build: Path, instance: str | None) -> str:
    """The image for a `stack`: AWS's Ray container, that of `invoke image`, or `stack` itself.

    `build` is the project's build folder; `instance` is None for serverless. Raises CommandError.
    """
    if stack == "slim":
        return slim_image(aws, build, instance)
    if stack == "ray":
        return ray_image(aws, instance)
    return own_image(aws, stack)


def slim_image(aws: Aws, build: Path, instance: str | None) -> str:
    """The image of build/<project>/image.json, by its digest, so that what was scanned is what runs.

    Raises CommandError unless it was built from serve/ as it is now, for the instance's processor, in this
    Region.
    """
    architecture, source = slim_architecture(instance), build / "image.json"
    try:
        facts = json.loads(source.read_text())
        uri, owner, tag = facts["uri"], (facts["region"], facts["account"]), facts["tag"]
        wanted, size = docker_build.content_tag(architecture, facts["base"]), facts["bytes"]
    except (OSError, ValueError, KeyError):
        raise CommandError(2, f"{source} does not say which image to run: run `invoke image`") from None
    if owner != (aws.region, aws.account):
        there, here = f"{owner[0]} of account {owner[1]}", f"{aws.region} of {aws.account}"
        raise CommandError(2, f"the image is in {there}, and you are in {here}: run `invoke image`")
    if tag != wanted:
        option = "" if tag.endswith(architecture) else f" --instance {instance}"
        raise CommandError(2, f"the image {tag} is not the required {wanted}: run `invoke image{option}`")
    if instance is None and size > SERVERLESS_MAX_BYTES:
        raise CommandError(2, f"serverless takes images of at most 10 GB, and this has {size / 1e9:.1f}")
    return uri


def slim_architecture(instance: str | None) -> str:
    """amd64 or arm64; amd64 for serverless (None). Raises CommandError for an accelerator."""
    if instance is None:
        return "amd64"
    if is_gpu(instance) or re.match(OTHER_ACCELERATOR, instance):
        text = f"the slim image computes on the CPU and would not use {instance}'s accelerator"
        raise CommandError(2, f"{text}: use stack ray")
    return docker_build.instance_architecture(instance)


def ray_image(aws: Aws, instance: str | None) -> str:
    """AWS's Ray serving container for this Region and instance type (None: serverless)."""
    gpu = instance is not None and is_gpu(instance)
    if instance and not gpu:
        arm = docker_build.instance_architecture(instance) == "arm64"
        if arm or re.match(OTHER_ACCELERATOR, instance):
            raise CommandError(
                2, f"AWS's Ray image runs on x86 only, not on {instance}: choose another `instance`"
            )
    account = TABLE["accounts"].get(aws.region)
    if not account:
        raise CommandError(2, f"AWS has no Ray image in {aws.region}: give an image of your own as `stack`")
    tag = TABLE["tags"]["cuda" if gpu else "cpu"]
    return f"{registry_host(aws, account)}/{TABLE['repository']}:{tag}"


def own_image(aws: Aws, uri: str) -> str:
    """The user's own image. SageMaker takes only private ECR repositories of its own Region."""
    if uri.startswith("public.ecr.aws/"):
        text = "SageMaker does not take images from public ECR"
        raise CommandError(2, f"{text}: copy {uri} to a private repository")
    if not re.match(r"\d{12}\.dkr\.ecr\.", uri):
        known = "ray, slim, or a private ECR image (ACCOUNT.dkr.ecr.REGION...)"
        raise CommandError(2, f"`stack` is {known}, not {uri!r}")
    if not uri.startswith(registry_host(aws, uri[:12]) + "/"):
        raise CommandError(2, f"the image must be in the endpoint's Region, {aws.region}, not {uri}")
    return uri


def registry_host(aws: Aws, account: str) -> str:
    """The host of an account's ECR registry in this Region."""
    return f"{account}.dkr.ecr.{aws.region}.{TABLE['domains'][aws.partition]}"


def gpu_ami(stack: str, instance: str, given: str | None) -> str | None:
    """A GPU instance's AMI; None without a GPU. Raises CommandError.

    The AMI has the NVIDIA driver, which must fit the image's CUDA version: with a wrong one the endpoint
    hangs and logs nothing (images.json names the source).
    """
    if not is_gpu(instance):
        if given:
            raise CommandError(2, f"`ami` is for GPU instances, and {instance} has none: leave it empty")
        return None
    if stack == "ray" and given not in (None, TABLE["gpu_ami"]):
        raise CommandError(2, f"AWS's Ray image is known to work on {TABLE['gpu_ami']} only, not on {given}")
    if stack != "ray" and not given:
        text = f"an image of your own on {instance} needs `ami`, the machine image with its CUDA driver"
        raise CommandError(2, text)
    return given or TABLE["gpu_ami"]
