"""Which image and which machine image go with an instance type; what is not known to work is refused."""

import json
import re
from pathlib import Path

from aws import Aws, Stop

TABLE = json.loads(Path(__file__).with_name("images.json").read_text())


def is_gpu(instance: str) -> bool:
    """Whether an instance type has an NVIDIA GPU: ml.g5.xlarge, ml.p4d.24xlarge."""
    return bool(re.match(r"ml\.[gp]\d", instance))


def image(aws: Aws, stack: str, instance: str) -> str:
    """The image's address: AWS's Ray container for `ray`, else `stack` itself. Raises Stop."""
    return ray_image(aws, instance) if stack == "ray" else own_image(aws, stack)


def ray_image(aws: Aws, instance: str) -> str:
    """AWS's Ray serving container for this Region and instance type."""
    if re.match(r"ml\.(inf|trn)\d|ml\.[a-z]+\d+g[a-z]*\.", instance) and not is_gpu(instance):
        raise Stop(2, f"AWS's Ray image runs on x86 only, not on {instance}: choose another `instance`")
    account = TABLE["accounts"].get(aws.region)
    if not account:
        raise Stop(2, f"AWS has no Ray image in {aws.region}: give an image of your own as `stack`")
    tag = TABLE["tags"]["cuda" if is_gpu(instance) else "cpu"]
    return f"{registry(aws, account)}/{TABLE['repository']}:{tag}"


def own_image(aws: Aws, uri: str) -> str:
    """An image of the user's: SageMaker takes only private ECR, of its own Region."""
    if uri.startswith("public.ecr.aws/"):
        raise Stop(2, f"SageMaker does not take images from public ECR: copy {uri} to a private repository")
    if not re.match(r"\d{12}\.dkr\.ecr\.", uri):
        raise Stop(2, f"`stack` is ray, or a private ECR image (ACCOUNT.dkr.ecr.REGION...), not {uri!r}")
    if not uri.startswith(registry(aws, uri[:12]) + "/"):
        raise Stop(2, f"the image must be in the endpoint's Region, {aws.region}, not {uri}")
    return uri


def registry(aws: Aws, account: str) -> str:
    """An account's ECR in this Region."""
    return f"{account}.dkr.ecr.{aws.region}.{TABLE['domains'][aws.partition]}"


def machine_image(stack: str, instance: str, given: str | None) -> str | None:
    """The GPU instance's AMI, by the image's CUDA: a wrong one makes an endpoint that hangs without a log."""
    if not is_gpu(instance):
        if given:
            raise Stop(2, f"`ami` is for GPU instances, and {instance} has none: leave it empty")
        return None
    if stack == "ray" and given not in (None, TABLE["gpu_ami"]):
        raise Stop(2, f"AWS's Ray image is known to work on {TABLE['gpu_ami']} only, not on {given}")
    if stack != "ray" and not given:
        raise Stop(
            2, f"an image of your own on {instance} needs `ami`, the machine image with its CUDA driver"
        )
    return given or TABLE["gpu_ami"]
