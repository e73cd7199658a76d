"""Which image and which machine image go with an instance type; what is not known to work is refused."""

import json
import re
from argparse import Namespace
from pathlib import Path

from aws.client import Aws
from common import CommandError
from ecr import docker_build

TABLE = json.loads(Path(__file__).with_name("images.json").read_text())
SERVERLESS_MAX_BYTES = 10e9  # bytes of an image that serverless takes


def is_gpu(instance: str) -> bool:
    """Whether an instance type has an NVIDIA GPU: ml.g5.xlarge, ml.p4d.24xlarge."""
    return bool(re.match(r"ml\.[gp]\d", instance))


def image_uri(aws: Aws, settings: Namespace) -> str:
    """The image's address: AWS's Ray container, that of `invoke image`, or `stack` itself. Raises Stop."""
    if settings.stack == "slim":
        return slim_image(aws, settings.build, settings.kind, settings.instance)
    if settings.stack == "ray":
        return ray_image(aws, "" if settings.kind == "serverless" else settings.instance)
    return own_image(aws, settings.stack)


def slim_image(aws: Aws, build: Path, kind: str, instance: str) -> str:
    """The image that `invoke image` wrote down, by its digest: what was scanned is what runs.

    Raises Stop unless it is of serve/ as it is now, for the instance's processor, and in this Region.
    """
    architecture, written = slim_architecture(kind, instance), build / "image.json"
    try:
        facts = json.loads(written.read_text())
        uri, place, made = facts["uri"], (facts["region"], facts["account"]), facts["tag"]
        wanted, size = docker_build.content_tag(architecture, facts["base"]), facts["bytes"]
    except (OSError, ValueError, KeyError):
        raise CommandError(2, f"{written} does not say which image to run: run `invoke image`") from None
    if place != (aws.region, aws.account):
        there, here = f"{place[0]} of account {place[1]}", f"{aws.region} of {aws.account}"
        raise CommandError(2, f"the image is in {there}, and you are in {here}: run `invoke image`")
    if made != wanted:
        option = "" if made.endswith(architecture) else f" --instance {instance}"
        raise CommandError(
            2, f"the image {made} is not {wanted}, which is needed: run `invoke image{option}`"
        )
    if kind == "serverless" and size > SERVERLESS_MAX_BYTES:
        raise CommandError(2, f"serverless takes images of at most 10 GB, and this has {size / 1e9:.1f}")
    return uri


def slim_architecture(kind: str, instance: str) -> str:
    """amd64 or arm64. Raises Stop where the slim image would be of no use."""
    if kind == "serverless":
        return "amd64"
    if is_gpu(instance) or re.match(r"ml\.(inf|trn)\d", instance):
        raise CommandError(
            2, f"the slim image computes on processors, not on {instance}'s accelerator: use stack ray"
        )
    return docker_build.instance_architecture(instance)


def ray_image(aws: Aws, instance: str) -> str:
    """AWS's Ray serving container for this Region and instance type."""
    if re.match(r"ml\.(inf|trn)\d|ml\.[a-z]+\d+g[a-z]*\.", instance) and not is_gpu(instance):
        raise CommandError(
            2, f"AWS's Ray image runs on x86 only, not on {instance}: choose another `instance`"
        )
    account = TABLE["accounts"].get(aws.region)
    if not account:
        raise CommandError(2, f"AWS has no Ray image in {aws.region}: give an image of your own as `stack`")
    tag = TABLE["tags"]["cuda" if is_gpu(instance) else "cpu"]
    return f"{registry_host(aws, account)}/{TABLE['repository']}:{tag}"


def own_image(aws: Aws, uri: str) -> str:
    """An image of the user's: SageMaker takes only private ECR, of its own Region."""
    if uri.startswith("public.ecr.aws/"):
        raise CommandError(
            2, f"SageMaker does not take images from public ECR: copy {uri} to a private repository"
        )
    if not re.match(r"\d{12}\.dkr\.ecr\.", uri):
        raise CommandError(
            2, f"`stack` is ray, slim, or a private ECR image (ACCOUNT.dkr.ecr.REGION...), not {uri!r}"
        )
    if not uri.startswith(registry_host(aws, uri[:12]) + "/"):
        raise CommandError(2, f"the image must be in the endpoint's Region, {aws.region}, not {uri}")
    return uri


def registry_host(aws: Aws, account: str) -> str:
    """An account's ECR in this Region."""
    return f"{account}.dkr.ecr.{aws.region}.{TABLE['domains'][aws.partition]}"


def gpu_ami(stack: str, instance: str, given: str | None) -> str | None:
    """The GPU instance's AMI, by the image's CUDA: a wrong one makes an endpoint that hangs without a log."""
    if not is_gpu(instance):
        if given:
            raise CommandError(2, f"`ami` is for GPU instances, and {instance} has none: leave it empty")
        return None
    if stack == "ray" and given not in (None, TABLE["gpu_ami"]):
        raise CommandError(2, f"AWS's Ray image is known to work on {TABLE['gpu_ami']} only, not on {given}")
    if stack != "ray" and not given:
        raise CommandError(
            2, f"an image of your own on {instance} needs `ami`, the machine image with its CUDA driver"
        )
    return given or TABLE["gpu_ami"]
