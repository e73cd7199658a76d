"""The settings of a deployment: the command line, and all that can be refused before AWS is asked."""

import argparse
import re
import shlex

from aws.names import OWNER
from common import CommandError
from ecr import docker_build
from ecr.catalogue import is_gpu

KINDS = ("real-time", "serverless", "async")
CAPTURES = ("off", "outputs", "all")
NO_INSTANCE = (  # what a serverless endpoint cannot have
    "kms_key",
    "subnets",
    "security_groups",
    "isolation",
    "guard",
    "max",
    "ami",
)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of what runs, which an endpoint and a batch transform share."""
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
        help="instances; 2 stand in two availability zones (%(default)s)",
    )
    add("--role", help="execution role, name or ARN; default: the notebook's own, or `invoke role --create`")
    add("--environment", type=name_values, default={}, help="of the container: 'SERVE_URLS=off LEVEL=3'")
    add("--tags", type=name_values, default={}, help="of your own: 'owner=me cost-centre=12'")
    add("--kms-key", help="encrypts the instances' volume and what is written to S3")
    add("--subnets", type=comma_list, default=[], help="VPC: 'subnet-1,subnet-2'")
    add("--security-groups", type=comma_list, default=[], help="VPC: 'sg-1'")
    add("--isolation", type=on_or_off, help="no network for the container: on (default for slim), off")


def add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of an endpoint alone."""
    add = parser.add_argument
    add("--kind", choices=KINDS, default="real-time", help="of endpoint (%(default)s)")
    add("--memory", type=positive_integer, default=4096, help="of serverless, in MB (%(default)s)")
    add(
        "--concurrency",
        type=positive_integer,
        default=5,
        help="serverless: requests at a time; async: per instance",
    )
    add("--provisioned", type=natural_number, default=0, help="serverless: kept warm, of the concurrency")
    add(
        "--ttl", type=duration_seconds, help="delete the endpoint after this: 90m, 4h, 2d; none takes it back"
    )
    add("--min", type=natural_number, help="autoscaling: fewest instances (1; async may have 0)")
    add("--max", type=natural_number, default=0, help="autoscaling: most instances; 0 switches it off")
    add(
        "--target",
        type=positive_integer,
        help="invocations a minute per instance (600); async: that wait (5)",
    )
    add("--cooldown", type=natural_number, default=300, help="seconds between two scalings (%(default)s)")
    add("--guard", type=on_or_off, default=False, help="roll an update back on 5xx or latency: on, off")
    add(
        "--latency",
        type=positive_integer,
        default=2000,
        help="guard: p99 of the model, in milliseconds (%(default)s)",
    )
    add("--bake", type=natural_number, default=300, help="guard: seconds under watch (%(default)s)")
    add("--capture", type=capture_mode, default="off", help="keep what was answered in S3: off, outputs, all")
    add(
        "--startup",
        type=positive_integer,
        default=600,
        help="seconds for the container to start (%(default)s)",
    )
    add("--download", type=positive_integer, default=600, help="seconds to fetch the archive (%(default)s)")
    add("--ami", help="GPU instances: AWS's machine image; default: what goes with the Ray image")


def check(args: argparse.Namespace) -> None:
    """Raises Stop for settings that contradict each other or AWS's limits."""
    check_model(args)
    if args.kind == "serverless":
        check_serverless(args)
    for name in ("startup", "download"):
        if not 60 <= getattr(args, name) <= 3600:
            raise CommandError(2, f"`{name}` is 60 to 3600 seconds, not {getattr(args, name)}")
    if args.bake > 3600:
        raise CommandError(2, f"`bake` is at most 3600 seconds, not {args.bake}")
    check_scaling(args)


def check_model(args: argparse.Namespace) -> None:
    """What an endpoint and a batch transform share."""
    if bool(args.subnets) != bool(args.security_groups):
        raise CommandError(2, "a VPC needs both: give `subnets` and `security_groups`, or neither")
    check_pairs(args.environment, args.tags)
    decide_isolation(args)


def decide_isolation(args: argparse.Namespace) -> None:
    """Where nothing is said, the slim image has no network.

    `urls` says whether it may fetch the addresses in requests: on serverless, which AWS does not isolate,
    that is all that is closed.
    """
    closed = args.stack == "slim" if args.isolation is None else args.isolation
    args.urls = not closed
    args.isolation = closed and (args.isolation is True or getattr(args, "kind", "") != "serverless")
    if args.isolation and args.stack == "ray" and getattr(args, "kind", "") != "serverless":
        text = "AWS's Ray container fetches packages when it starts, which `isolation` forbids"
        raise CommandError(2, f"{text}: use stack slim, or leave isolation out")


def check_serverless(args: argparse.Namespace) -> None:
    """AWS's limits: 1 to 6 GB, 200 at a time, and nothing that belongs to an instance."""
    given = [name for name in NO_INSTANCE if getattr(args, name)] + ["capture"] * (args.capture != "off")
    if is_gpu(args.instance) or docker_build.instance_architecture(args.instance) == "arm64":
        given.append("instance")
    if given:
        raise CommandError(
            2, f"a serverless endpoint cannot have {', '.join(given)}: leave it out, or choose another kind"
        )
    if args.memory not in range(1024, 6145, 1024):
        raise CommandError(
            2, f"`memory` of serverless is 1024 to 6144 MB in steps of 1024, not {args.memory}"
        )
    if not 1 <= args.concurrency <= 200 or args.provisioned > args.concurrency:
        raise CommandError(2, "`concurrency` of serverless is 1 to 200, and `provisioned` not more than it")


def check_scaling(args: argparse.Namespace) -> None:
    """From none (async) or one instance up."""
    if args.min not in (None, 1) and not args.max:
        raise CommandError(
            2, "`min` is for autoscaling, which `max` switches on: give both, or `count` alone"
        )
    if args.min is None:
        args.min = 0 if args.kind == "async" and args.max else 1
    if args.target is None:
        args.target = 5 if args.kind == "async" else 600
    if args.kind != "async" and args.min < 1:
        raise CommandError(
            2, f"a {args.kind} endpoint keeps one instance at least: `min` of 0 is for kind async"
        )
    if args.max and not args.min <= args.count <= args.max:
        raise CommandError(2, f"`count` ({args.count}) must be from `min` ({args.min}) to `max` ({args.max})")


def check_pairs(environment: dict[str, str], tags: dict[str, str]) -> None:
    """SageMaker's limits of a container's environment and of tags."""
    sizes = [len(text.encode()) for pair in environment.items() for text in pair]
    if len(environment) > 95 or sum(sizes) > 31_000 or max(sizes, default=0) > 1024:
        raise CommandError(
            2, "`environment` is over SageMaker's limits: 100 names, 1024 bytes each, 32 KB in all"
        )
    wrong = [k for k, v in tags.items() if not re.fullmatch(r"[\w\s.:/=+@-]{1,128}", k) or len(v) > 256]
    wrong += [k for k in tags if k.startswith(("aws:", OWNER))]
    if wrong or len(tags) > 40:
        raise CommandError(
            2, f"`tags` that AWS or this project does not take: {', '.join(wrong) or 'over 40'}"
        )


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
    """on or off; YAML makes True and False of them."""
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
    found = re.fullmatch(r"(\d+)\s*([smhd])", text.strip().lower())
    if text.lower() in ("none", "off", "false", "0"):
        return 0
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 90m, 4h or 2d")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def name_values(text: str) -> dict[str, str]:
    """NAME=VALUE words, quoted as in a shell."""
    try:
        found = dict(word.split("=", 1) for word in shlex.split(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 'NAME=VALUE NAME=VALUE'") from None
    return found


def comma_list(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
