"""Roles and policies: `python deploy/role.py --project pets` prints those that a project needs.

`--create` creates or updates three roles: the execution role, which SageMaker assumes to read the archive and
write logs; the role with which EventBridge Scheduler deletes an endpoint; the role with which CodeBuild
builds an image. The deployer's policy is for you: an administrator attaches it to whoever deploys, and the
image builder's policy to whoever runs `invoke image`. Neither allows creating or changing roles: an identity
that may do that and pass roles to a service can do anything.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from string import Template

from aws.client import Aws, Failure, as_command_error, connect, run_command
from aws.names import (
    alarm_prefix,
    build_log_group,
    build_role_name,
    check_project,
    image_name,
    role_name,
    ttl_name,
)
from aws.roles import create_role, remove_role

POLICIES = Path(__file__).with_name("policies")
ROLES = {"execution_role": role_name, "ttl_role": ttl_name, "build_role": build_role_name}


def main(argv: list[str] | None = None) -> int:
    """Print the policies, create the roles or delete them; returns the exit code."""
    args = arguments(argv)
    return run_command(lambda: run(args))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="The roles and policies of a project.")
    parser.add_argument("--project", required=True)
    parser.add_argument("--bucket", help="default: SageMaker's own")
    parser.add_argument(
        "--role", help="an execution role of your own, which the deployer may pass to SageMaker"
    )
    parser.add_argument("--kms-key", help="ARN or id of a key of your own, which they may use")
    parser.add_argument("--read", type=s3_prefixes, default=[], help="transform's input: 's3://a/b,s3://c'")
    parser.add_argument("--write", type=s3_prefixes, default=[], help="transform's output, likewise")
    parser.add_argument("--create", action="store_true", help="create or update the roles")
    parser.add_argument("--remove", action="store_true", help="delete the roles")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    project = check_project(args.project)
    aws = connect_or_placeholder() if not (args.create or args.remove) else connect()
    documents = policies(aws, project, args)
    names = {key: name(project) for key, name in ROLES.items()}
    if args.remove:
        for name in names.values():
            print(f"{name}: {'deleted' if remove_role(aws, project, name) else 'not found'}")
    elif args.create:
        for key, name in names.items():
            print(f"{name}: {create_role(aws, project, name, documents[key])}")
    else:
        print(json.dumps(documents, indent=2))
    return 0


def connect_or_placeholder() -> Aws:
    """The user's account; without credentials, placeholders."""
    try:
        return connect()
    except Failure as error:
        reason = as_command_error(error)
        print(f"note: replace ACCOUNT and REGION with your own ({reason})", file=sys.stderr)
        return Aws(None, "REGION", "aws", "ACCOUNT", "")


def s3_prefixes(text: str) -> list[str]:
    """Comma-separated S3 URIs, without s3:// and the last slash."""
    uris = [uri.strip() for uri in text.split(",")]
    if not all(re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?", uri) for uri in uris):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as s3://bucket/prefix,s3://bucket")
    return [uri.removeprefix("s3://").rstrip("/") for uri in uris]


def policies(aws: Aws, project: str, args: argparse.Namespace) -> dict:
    """The policies of deploy/policies/ for this account: three roles, the deployer, the image builder."""
    role = f"arn:{aws.partition}:iam::{aws.account}:role/"
    own = args.role if (args.role or "").startswith("arn:") else role + (args.role or role_name(project))
    key = f"arn:{aws.partition}:kms:{aws.region}:{aws.account}:key/{args.kms_key}"
    values = {
        "partition": aws.partition,
        "region": aws.region,
        "account": aws.account,
        "bucket": args.bucket or f"sagemaker-{aws.region}-{aws.account}",
        "project": project,
        "role": own,
        "key": args.kms_key if (args.kms_key or "").startswith("arn:") else key,
        "ttl_role": role + ttl_name(project),
        "ttl_name": ttl_name(project),
        "build_role": role + build_role_name(project),
        "build_log_group": build_log_group(project),
        "image": image_name(project),
        "alarms": alarm_prefix(project),
    }

    def fill(name: str, **more: str) -> dict:
        return json.loads(Template((POLICIES / f"{name}.json").read_text()).substitute(values, **more))

    def trust(service: str) -> dict:
        return fill("trust", service=f"{service}.amazonaws.com")

    execution, deployer, build = fill("execution"), fill("deployer"), fill("build")
    execution["Statement"] += batch_statements(aws, args.read, args.write)
    for policy in (execution, deployer, build) if args.kms_key else ():
        policy["Statement"] += fill("key")["Statement"]
    return {
        "execution_role": {"trust": trust("sagemaker"), "policy": execution},
        "ttl_role": {"trust": trust("scheduler"), "policy": fill("ttl")},
        "build_role": {"trust": trust("codebuild"), "policy": build},
        "deployer": {"policy": deployer},
        "image_builder": {"policy": fill("builder")},
    }


def batch_statements(aws: Aws, read: list[str], write: list[str]) -> list[dict]:
    """Statements that let a batch transform read and write buckets outside the project."""
    statements: list[dict] = []
    for action, prefixes in (("s3:GetObject", read), ("s3:PutObject", write)):
        if prefixes:
            arns = [f"arn:{aws.partition}:s3:::{prefix}/*" for prefix in prefixes]
            statements.append({"Effect": "Allow", "Action": action, "Resource": arns})
    if read:
        arns = sorted({f"arn:{aws.partition}:s3:::{prefix.partition('/')[0]}" for prefix in read})
        statements.append({"Effect": "Allow", "Action": "s3:ListBucket", "Resource": arns})
    return statements


if __name__ == "__main__":
    raise SystemExit(main())
