"""The settings of a deployment: command-line flags, and the checks that need no request to AWS."""

import argparse
import re
import shlex
from dataclasses import dataclass, fields
from typing import Any

from aws.names import OWNER
from common import CommandError
from ecr.catalogue import is_gpu
from ecr.docker_build import instance_architecture

KINDS = ("real-time", "serverless", "async")
CAPTURES = ("off", "outputs", "all")
NO_INSTANCE = (  # settings that AWS does not support for serverless endpoints
    "kms_key",
    "subnets",
    "security_groups",
    "isolation",
    "guard",
    "max",
    "ami",
)


@dataclass(frozen=True)
class ModelSettings:
    """What runs and on what: the settings that an endpoint and a batch transform share."""

    stack: str
    instance: str
    count: int
    role: str | None
    environment: dict[str, str]
    tags: dict[str, str]
    kms_key: str | None
    subnets: list[str]
    security_groups: list[str]
    isolation: bool
    urls: bool  # whether the container may fetch the URLs in requests


@dataclass(frozen=True)
class Settings(ModelSettings):
    """The settings of an endpoint; `ttl` is in seconds, 0 for never, None for no change."""

    kind: str
    memory: int  # MB
    concurrency: int
    provisioned: int
    ttl: int | None
    min: int
    max: int  # 0: no autoscaling
    target: int
    cooldown: int  # seconds, as are bake, startup and download
    guard: bool
    latency: int  # milliseconds
    bake: int
    capture: str
    startup: int
    download: int
    ami: str | None

    @property
    def hosted_on(self) -> str | None:
        """The instance type; None for serverless."""
        return None if self.kind == "serverless" else self.instance


@dataclass(frozen=True)
class BatchSettings(ModelSettings):
    """The settings of a batch transform; `source` and `to` are S3 URIs."""

    source: str
    to: str
    concurrency: int
    payload: int  # MB


# --- flags


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ModelSettings."""
    add = parser.add_argument
    add(
        "--stack",
        default="ray",
        help="ray: AWS's container; slim: `invoke image`'s; or an image's URI in ECR",
    )
    add("--instance", default="ml.c7i.large", help="type; not for serverless (%(default)s)")
    add(
        "--count",
        type=positive_integer,
        default=1,
        help="instances; 2 use two availability zones (%(default)s)",
    )
    add("--role", help="execution role, name or ARN; default: the notebook's own, or `invoke role --create`")
    add("--environment", type=name_values, default={}, help="of the container: 'SERVE_URLS=off LEVEL=3'")
    add("--tags", type=name_values, default={}, help="of your own: 'owner=me cost-centre=12'")
    add("--kms-key", help="encrypts the instances' volumes and the objects written to S3")
    add("--subnets", type=comma_list, default=[], help="VPC: 'subnet-1,subnet-2'")
    add("--security-groups", type=comma_list, default=[], help="VPC: 'sg-1'")
    add("--isolation", type=on_or_off, help="no network for the container: on (default for slim), off")


def add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of Settings, without those of ModelSettings."""
    add = parser.add_argument
    add("--kind", choices=KINDS, default="real-time", help="of endpoint (%(default)s)")
    add("--memory", type=positive_integer, default=4096, help="serverless: MB (%(default)s)")
    add(
        "--concurrency",
        type=positive_integer,
        default=5,
        help="serverless: requests at a time; async: per instance",
    )
    add("--provisioned", type=natural_number, default=0, help="serverless: of the concurrency, kept warm")
    add("--ttl", type=duration_seconds, help="delete the endpoint after this: 90m, 4h, 2d; none cancels it")
    add("--min", type=natural_number, help="autoscaling: fewest instances (1; async may have 0)")
    add("--max", type=natural_number, default=0, help="autoscaling: most instances; 0 switches it off")
    add(
        "--target",
        type=positive_integer,
        help="autoscaling: invocations per minute and instance (600); async: queue (5)",
    )
    add("--cooldown", type=natural_number, default=300, help="seconds between two scalings (%(default)s)")
    add("--guard", type=on_or_off, default=False, help="roll an update back on 5xx or latency: on, off")
    add(
        "--latency",
        type=positive_integer,
        default=2000,
        help="guard: the model's p99 in milliseconds (%(default)s)",
    )
    add("--bake", type=natural_number, default=300, help="guard: seconds under observation (%(default)s)")
    add("--capture", type=capture_mode, default="off", help="store responses in S3: off, outputs, all")
    add(
        "--startup",
        type=positive_integer,
        default=600,
        help="seconds for the container to start (%(default)s)",
    )
    add(
        "--download", type=positive_integer, default=600, help="seconds to download the archive (%(default)s)"
    )
    add("--ami", help="GPU instances: AWS's machine image; default: the one that fits the Ray image")


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of BatchSettings."""
    add = parser.add_argument
    add("source", help="s3://bucket/prefix that holds pictures and nothing else")
    add("to", help="s3://bucket/prefix; the answer to cat.jpg becomes cat.jpg.out, in JSON")
    add("--concurrency", type=positive_integer, default=4, help="pictures at a time per instance")
    add("--payload", type=positive_integer, default=25, help="MB of the largest picture (%(default)s)")
    add_model_arguments(parser)


# --- checks


def check(args: argparse.Namespace) -> Settings:
    """The settings of an endpoint. Raises CommandError if they contradict each other or AWS's limits."""
    check_model(args)
    values = (
        picked(args, Settings)
        | network(args.stack, args.kind, isolation=args.isolation)
        | scaling_limits(args)
    )
    settings = Settings(**values)
    if settings.kind == "serverless":
        check_serverless(settings)
    for name in ("startup", "download"):
        if not 60 <= getattr(settings, name) <= 3600:
            raise CommandError(2, f"`{name}` is 60 to 3600 seconds, not {getattr(settings, name)}")
    if settings.bake > 3600:
        raise CommandError(2, f"`bake` is at most 3600 seconds, not {settings.bake}")
    return settings


def check_batch(args: argparse.Namespace) -> BatchSettings:
    """The settings of a batch transform. Raises CommandError like `check`."""
    check_model(args)
    settings = BatchSettings(
        **picked(args, BatchSettings) | network(args.stack, "batch", isolation=args.isolation)
    )
    for uri in (settings.source, settings.to):
        if not re.match("s3://[a-z0-9][a-z0-9.-]+(/|$)", uri):
            raise CommandError(2, f"{uri!r} is not an S3 URI such as s3://bucket/prefix")
    if settings.concurrency * settings.payload > 100:  # CreateTransformJob: MaxPayloadInMB
        raise CommandError(2, "`concurrency` times `payload` is at most 100 MB in a batch transform")
    return settings


def picked(args: argparse.Namespace, kind: type[ModelSettings]) -> dict[str, Any]:
    """The command line's values for the fields of a dataclass."""
    return {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)}


def check_model(args: argparse.Namespace) -> None:
    """Raise CommandError for what an endpoint and a batch transform have in common."""
    if bool(args.subnets) != bool(args.security_groups):
        raise CommandError(2, "a VPC needs both: give `subnets` and `security_groups`, or neither")
    check_pairs(args.environment, args.tags)


def network(stack: str, kind: str, *, isolation: bool | None) -> dict[str, bool]:
    """The values of `isolation` and `urls`. Raises CommandError.

    By default the slim image has no network. AWS does not isolate serverless endpoints: there, only the
    fetching of URLs is switched off.
    """
    closed = stack == "slim" if isolation is None else isolation
    isolated = closed and (isolation is True or kind != "serverless")
    if isolated and stack == "ray" and kind != "serverless":
        text = "AWS's Ray container fetches packages when it starts, which `isolation` forbids"
        raise CommandError(2, f"{text}: use stack slim, or leave isolation out")
    return {"isolation": isolated, "urls": not closed}


def check_serverless(settings: Settings) -> None:
    """Raise CommandError for AWS's limits of serverless: 1 to 6 GB, 200 requests at a time, no instances."""
    given = [name for name in NO_INSTANCE if getattr(settings, name)]
    given += ["capture"] * (settings.capture != "off")
    if is_gpu(settings.instance) or instance_architecture(settings.instance) == "arm64":
        given.append("instance")
    if given:
        text = f"a serverless endpoint cannot have {', '.join(given)}"
        raise CommandError(2, f"{text}: leave it out, or choose another kind")
    if settings.memory not in range(1024, 6145, 1024):
        text = "`memory` of serverless is 1024 to 6144 MB in steps of 1024"
        raise CommandError(2, f"{text}, not {settings.memory}")
    if not 1 <= settings.concurrency <= 200 or settings.provisioned > settings.concurrency:
        raise CommandError(2, "`concurrency` of serverless is 1 to 200, and `provisioned` not more than it")


def scaling_limits(args: argparse.Namespace) -> dict[str, int]:
    """The values of `min` and `target` with their defaults. Raises CommandError."""
    if args.min not in (None, 1) and not args.max:
        raise CommandError(
            2, "`min` is for autoscaling, which `max` switches on: give both, or `count` alone"
        )
    least = args.min
    if least is None:
        least = 0 if args.kind == "async" and args.max else 1
    # SageMaker scales only asynchronous endpoints to zero, by the length of their queue.
    if args.kind != "async" and least < 1:
        raise CommandError(
            2, f"a {args.kind} endpoint keeps one instance at least: `min` of 0 is for kind async"
        )
    if args.max and not least <= args.count <= args.max:
        raise CommandError(2, f"`count` ({args.count}) must be from `min` ({least}) to `max` ({args.max})")
    target = args.target if args.target is not None else 5 if args.kind == "async" else 600
    return {"min": least, "target": target}


def check_pairs(environment: dict[str, str], tags: dict[str, str]) -> None:
    """Raise CommandError for SageMaker's limits of a container's environment and of tags."""
    sizes = [len(text.encode()) for pair in environment.items() for text in pair]
    if len(environment) > 95 or sum(sizes) > 31_000 or max(sizes, default=0) > 1024:
        text = "`environment` is over SageMaker's limits"
        raise CommandError(2, f"{text}: 100 names, 1024 bytes each, 32 KB in all")  # some are this tool's own
    wrong = [k for k, v in tags.items() if not re.fullmatch(r"[\w\s.:/=+@-]{1,128}", k) or len(v) > 256]
    wrong += [k for k in tags if k.startswith(("aws:", OWNER))]
    if wrong or len(tags) > 40:  # AWS's limit is 50
        text = "`tags` that AWS or this project does not take"
        raise CommandError(2, f"{text}: {', '.join(wrong) or 'over 40'}")


# --- the flags' own types


def positive_integer(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def natural_number(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def on_or_off(text: str) -> bool:
    """on or off; YAML turns these words into True and False."""
    known = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return known[text.lower()]


def capture_mode(text: str) -> str:
    """off, outputs or all."""
    text = "off" if text.lower() in ("false", "no") else text.lower()
    if text not in CAPTURES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(CAPTURES)}")
    return text


def duration_seconds(text: str) -> int:
    """Seconds in 90m, 4h or 2d; 0 for none."""
    if text.lower() in ("none", "off", "false", "0"):
        return 0
    match = re.fullmatch(r"(\d+)\s*([smhd])", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90m, 4h or 2d")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def name_values(text: str) -> dict[str, str]:
    """NAME=VALUE pairs, quoted as in a shell."""
    try:
        return dict(pair.split("=", 1) for pair in shlex.split(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 'NAME=VALUE NAME=VALUE'") from None


def comma_list(text: str) -> list[str]:
    """Comma-separated values."""
    return [value.strip() for value in text.split(",") if value.strip()]
