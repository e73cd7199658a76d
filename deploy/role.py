"""Permissions: `python deploy/role.py --project pets` prints the roles and policies that this project needs.

`--create` makes the execution role, which SageMaker takes on to read the archive and write logs, the role
with which the scheduler ends an endpoint, and the one with which CodeBuild makes an image; again is the same.
The deployer's policy is for you: an administrator attaches it to whoever deploys, and the image builder's too
to whoever runs `invoke image`. They let nobody make or change a role: who may do that, and hand a role to a
service, may do anything.
"""

import argparse
import contextlib
import json
import re
import sys
from pathlib import Path
from string import Template

from aws import Aws, AwsError, Failure, Stop, as_stop, connect, guarded, is_denied, unless_missing
from names import (
    PROJECT,
    alarm_prefix,
    build_log_group,
    build_role_name,
    check_project,
    image_name,
    role_name,
    tag_list,
    ttl_name,
)

POLICIES = Path(__file__).with_name("policies")
METADATA = Path("/opt/ml/metadata/resource-metadata.json")  # in SageMaker Studio and notebooks
INLINE = "fastai-sagemaker"
ROLES = {"execution_role": role_name, "ttl_role": ttl_name, "build_role": build_role_name}


def main(argv: list[str] | None = None) -> int:
    """Print the policies, or make the roles, or remove them."""
    args = arguments(argv)
    return guarded(lambda: run(args))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The roles and policies of a project.")
    parser.add_argument("--project", required=True)
    parser.add_argument("--bucket", help="default: SageMaker's own")
    parser.add_argument("--role", help="an execution role of your own, for the deployer to hand on")
    parser.add_argument("--kms-key", help="an own key's ARN or id, which both may use")
    parser.add_argument("--read", type=places, default=[], help="transform's pictures: 's3://a/b,s3://c'")
    parser.add_argument("--write", type=places, default=[], help="transform's answers, likewise")
    parser.add_argument("--create", action="store_true", help="make the roles, or bring them up to date")
    parser.add_argument("--remove", action="store_true", help="delete the roles")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """What the command line says; the exit code."""
    project = check_project(args.project)
    aws = somewhere() if not (args.create or args.remove) else connect()
    documents = policies(aws, project, args)
    names = {key: name(project) for key, name in ROLES.items()}
    if args.remove:
        for name in names.values():
            print(f"{name}: {'removed' if remove(aws, project, name) else 'there is no such role'}")
    elif args.create:
        for key, name in names.items():
            print(f"{name}: {create(aws, project, name, documents[key])}")
    else:
        print(json.dumps(documents, indent=2))
    return 0


def somewhere() -> Aws:
    """The user's account; without credentials, words that stand for it."""
    try:
        return connect()
    except Failure as error:
        reason = as_stop(error)
        print(f"note: ACCOUNT and REGION are yours to fill in ({reason})", file=sys.stderr)
        return Aws(None, "REGION", "aws", "ACCOUNT", "")


def places(text: str) -> list[str]:
    """Addresses in S3 between commas, without s3:// and the last slash."""
    found = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?", word) for word in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list like s3://bucket/prefix,s3://bucket")
    return [word.removeprefix("s3://").rstrip("/") for word in found]


def policies(aws: Aws, project: str, args: argparse.Namespace) -> dict:
    """The policies of deploy/policies/, filled in: the three roles', the deployer's, the image builder's."""
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
    execution["Statement"] += for_batches(aws, args.read, args.write)
    for policy in (execution, deployer, build) if args.kms_key else ():
        policy["Statement"] += fill("key")["Statement"]
    return {
        "execution_role": {"trust": trust("sagemaker"), "policy": execution},
        "ttl_role": {"trust": trust("scheduler"), "policy": fill("ttl")},
        "build_role": {"trust": trust("codebuild"), "policy": build},
        "deployer": {"policy": deployer},
        "image_builder": {"policy": fill("builder")},
    }


def for_batches(aws: Aws, read: list[str], write: list[str]) -> list[dict]:
    """Statements for a batch transform's pictures and answers, where these are not the project's own."""
    found = []
    for action, where in (("s3:GetObject", read), ("s3:PutObject", write)):
        if where:
            arns = [f"arn:{aws.partition}:s3:::{place}/*" for place in where]
            found.append({"Effect": "Allow", "Action": action, "Resource": arns})
    if read:
        arns = sorted({f"arn:{aws.partition}:s3:::{place.partition('/')[0]}" for place in read})
        found.append({"Effect": "Allow", "Action": "s3:ListBucket", "Resource": arns})
    return found


def create(aws: Aws, project: str, name: str, documents: dict) -> str:
    """Make a role, or bring ours up to date; returns its ARN. Raises Stop if it is somebody else's."""
    iam, trust = aws("iam"), json.dumps(documents["trust"])
    found = unless_missing(iam.get_role, RoleName=name)
    if found is None:
        request = {"RoleName": name, "AssumeRolePolicyDocument": trust}
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):  # a request that was repeated
            iam.create_role(**request, Tags=tag_list({PROJECT: project}))
        found = iam.get_role(RoleName=name)
    check_ours(found["Role"], project)
    iam.update_assume_role_policy(RoleName=name, PolicyDocument=trust)
    iam.put_role_policy(RoleName=name, PolicyName=INLINE, PolicyDocument=json.dumps(documents["policy"]))
    return found["Role"]["Arn"]


def remove(aws: Aws, project: str, name: str) -> bool:
    """Delete a role of ours; whether there was one. Raises Stop if it is somebody else's."""
    found = unless_missing(aws("iam").get_role, RoleName=name)
    if found is None:
        return False
    check_ours(found["Role"], project)
    unless_missing(aws("iam").delete_role_policy, RoleName=name, PolicyName=INLINE)
    unless_missing(aws("iam").delete_role, RoleName=name)
    return True


def check_ours(role: dict, project: str) -> None:
    """Raises Stop unless the role bears the project's tag."""
    if {"Key": PROJECT, "Value": project} not in role.get("Tags", []):
        raise Stop(2, f"the role {role['RoleName']} was not made by this tool: rename or delete it")


# --- the role of a deployment


def find_role(aws: Aws, given: str | None, project: str, metadata: Path = METADATA) -> str:
    """The execution role's ARN: the one given, the notebook's own, or that of `invoke role --create`.

    Raises Stop when there is none.
    """
    if given:
        return given if given.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account}:role/{given}"
    if attached := notebook_role(aws, metadata):
        return attached
    try:
        found = unless_missing(aws("iam").get_role, RoleName=role_name(project))
    except AwsError as error:
        if not is_denied(error):
            raise
        raise Stop(3, f"{as_stop(error)}; or give the role's ARN as `role`") from None
    if found is None:
        raise Stop(2, "there is no execution role: `invoke role --create` makes one, or give yours as `role`")
    return found["Role"]["Arn"]


def notebook_role(aws: Aws, metadata: Path) -> str | None:
    """The role of the SageMaker notebook or Studio space that this runs in; None elsewhere."""
    try:
        facts = json.loads(metadata.read_text())
    except (OSError, ValueError):
        return None
    if "ExecutionRoleArn" in facts:
        return facts["ExecutionRoleArn"]
    sagemaker = aws("sagemaker")
    if "DomainId" not in facts:
        return sagemaker.describe_notebook_instance(NotebookInstanceName=facts["ResourceName"])["RoleArn"]
    domain = {"DomainId": facts["DomainId"]}
    if "UserProfileName" in facts:
        profile = sagemaker.describe_user_profile(**domain, UserProfileName=facts["UserProfileName"])
        if role := profile.get("UserSettings", {}).get("ExecutionRole"):
            return role
    return sagemaker.describe_domain(**domain)["DefaultUserSettings"]["ExecutionRole"]


if __name__ == "__main__":
    raise SystemExit(main())
