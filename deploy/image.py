"""The serving image in ECR: `python deploy/image.py --project pets --build build/pets`.

The image of serve/Dockerfile, for `stack: slim`. Its tag is made from its content, so an unchanged image is
built once. It is built by Docker on this machine or by CodeBuild in your account, and scanned by ECR;
build/<project>/image.json has its address. `--delete` removes all of it.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

from aws.client import Aws, AwsError, connect, is_denied, none_if_missing, run_command
from aws.names import build_role_name, check_project, image_name
from aws.roles import check_role_is_ours, remove_role
from common import CommandError
from ecr import codebuild, docker_build, repository, scan
from ecr.catalogue import TABLE, slim_architecture
from lifecycle import remove
from lifecycle.settings import KINDS
from lifecycle.state import describe_config, get_state, variant_of

BUILDERS = ("docker", "codebuild")


def main(argv: list[str] | None = None) -> int:
    """Build the image, or remove it; returns the exit code."""
    args = arguments(argv)

    def run() -> int:
        check_project(args.project)
        return (delete if args.delete else build_and_scan)(connect(), args)

    return run_command(run)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Build the serving image, push it to ECR, scan it.")
    add = parser.add_argument
    add("--project", required=True, help="names the repository")
    add("--build", type=Path, default=Path("build"), help="build/<project>, for image.json")
    add("--kind", choices=KINDS, default="real-time", help="of endpoint that runs it (%(default)s)")
    add("--instance", default="ml.c7i.large", help="type whose processor it is built for (%(default)s)")
    add("--bucket", help="for CodeBuild's source; default: SageMaker's own")
    add("--builder", choices=BUILDERS, help="default: docker if it runs on this machine, else codebuild")
    add("--fail-on", choices=("critical", "high"), help="exit with 1 if ECR's scan finds this or worse")
    add("--base", help="replaces the Dockerfile's own base image")
    add("--delete", action="store_true", help="remove the images, and what built them")
    add("--yes", action="store_true", help="delete without asking, even what a live endpoint uses")
    return parser.parse_args(argv)


def build_and_scan(aws: Aws, args: argparse.Namespace) -> int:
    """Build, push and scan the image unless that was done, and write image.json. Raises CommandError."""
    project = args.project
    architecture = slim_architecture(None if args.kind == "serverless" else args.instance)
    tag = docker_build.content_tag(architecture, args.base)
    existing = repository.find_repository(aws, project)
    pushed_before = existing is not None and repository.find_image(aws, project, tag) is not None
    if existing is None or not pushed_before:
        existing = build(aws, args, architecture, tag)
    image = repository.ensure_docker_manifest(aws, project, tag, architecture)
    uri, digest, size = existing["repositoryUri"], image["imageDigest"], image["imageSizeInBytes"]
    what = "already pushed" if pushed_before else "pushed"
    print(f"{uri}:{tag}: {what}, {size / 1e6:.0f} MB; {storage_sentence(size)}", flush=True)
    findings = scan.wait_for_findings(aws, project, digest)
    scan.print_findings(findings)
    scan.check_findings(findings, args.fail_on)
    facts = {"uri": f"{uri}@{digest}", "digest": digest, "tag": tag}
    facts |= {"architecture": architecture, "base": args.base, "bytes": size}
    facts |= {"region": aws.region, "account": aws.account}
    write(args.build / "image.json", json.dumps(facts, indent=2) + "\n")
    print(f"{args.build / 'image.json'}: {facts['uri']}")
    return 0


def build(aws: Aws, args: argparse.Namespace, architecture: str, tag: str) -> dict:
    """Build the image and push it; returns the repository, created if necessary. Raises CommandError."""
    builder = args.builder or ("docker" if docker_build.is_docker_running() else "codebuild")
    if builder == "docker" and args.builder and not docker_build.is_docker_running():
        raise CommandError(3, "no Docker engine responds: start one, or leave `builder` out for CodeBuild")
    if builder == "codebuild":
        print(f"{tag}: built by CodeBuild, for {codebuild.price_sentence(architecture)}", flush=True)
        codebuild.find_build_role(aws, args.project)  # without it, nothing must be created
        target = repository.create_repository(aws, args.project)
        image = f"{target['repositoryUri']}:{tag}"
        codebuild.build(aws, args.project, args.bucket, image, architecture, args.base)
        return target
    print(f"{tag}: built by Docker on this machine", flush=True)
    local = build_locally(architecture, args.base)
    target = repository.create_repository(aws, args.project)
    repository.push(aws, target, local, tag)
    return target


def build_locally(architecture: str, base: str | None) -> str:
    """The local image's name. Raises CommandError, with advice if this machine has another processor."""
    try:
        return docker_build.build(architecture, base)
    except CommandError as error:
        here = docker_build.host_architecture()
        if architecture == here:
            raise
        text = f"{error}; since this machine is {here} and the image {architecture}"
        raise CommandError(error.code, f"{text}, try --builder codebuild in your account") from None


def storage_sentence(size: int) -> str:
    """ECR's price for storing so many bytes, and how to delete them."""
    known = TABLE["ecr"]["per_gb_month"]
    price = f"${size / 1e9 * known['price']:.2f} a month ({known['region']}, {known['date']})"
    return f"ECR stores it for {price} until `invoke image --delete`"


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


# --- --delete


def delete(aws: Aws, args: argparse.Namespace) -> int:
    """Print what there is, ask, remove it; returns the exit code. Raises CommandError."""
    project = args.project
    if used := used_by(aws, project):
        text = f"the endpoint {project} uses {used} and could not start another instance without it"
        if not args.yes:
            raise CommandError(1, f"{text}: delete it first with `invoke destroy`, or pass --yes")
        print(f"note: {text}")
    found = [*remove.find_images(aws, project), *find_context(aws, args)]
    role = find_role(aws, project)
    if role:
        print(f"  {'role':14} {role}")
    if not found and not role:
        print(f"no image of {project} is on AWS in {aws.region}, and nothing that builds one")
    if role and not found and not args.yes:
        remove.confirm(project)
    errors = remove.remove_all(project, found, yes=args.yes)
    if role:
        delete_role(aws, project, role)
    (args.build / "image.json").unlink(missing_ok=True)
    for sentence in errors:
        print(f"error: {sentence}", file=sys.stderr)
    return 3 if errors else 0


def used_by(aws: Aws, project: str) -> str | None:
    """The image that the project's endpoint runs, if it is from the project's own repository."""
    config = describe_config(aws, get_state(aws, project).config)
    if not config:
        return None
    name = variant_of(config)["ModelName"]
    model = none_if_missing(aws("sagemaker").describe_model, ModelName=name)
    image = model["PrimaryContainer"]["Image"] if model else ""
    return image if f"/{image_name(project)}@" in image else None


def find_context(aws: Aws, args: argparse.Namespace) -> list[remove.Item]:
    """CodeBuild's sources in S3."""
    bucket, prefix = args.bucket or f"sagemaker-{aws.region}-{aws.account}", f"{args.project}/image/"
    kinds = ["Versions", "DeleteMarkers"]
    versions = remove.list_objects(aws, "list_object_versions", kinds, bucket, args.project)
    keys = [
        {"Key": version["Key"], "VersionId": version["VersionId"]}
        for version in versions
        if version["Key"].startswith(prefix)
    ]
    if not keys:
        return []
    name = f"s3://{bucket}/{prefix} ({remove.counted(keys)})"
    return [remove.Item("data", name, partial(remove.remove_objects, aws, bucket, keys))]


def find_role(aws: Aws, project: str) -> str | None:
    """The name of CodeBuild's role, if there is one. Raises CommandError if it is somebody else's."""
    name = build_role_name(project)
    found = none_if_missing(aws("iam").get_role, RoleName=name)
    if found:
        check_role_is_ours(found["Role"], project)
    return name if found else None


def delete_role(aws: Aws, project: str, name: str) -> None:
    """Delete the role; without the permission it is kept, which costs nothing."""
    try:
        remove_role(aws, project, name)
        print(f"removed role {name}")
    except AwsError as error:
        if not is_denied(error):
            raise
        text = f"the role {name} is kept, because you may not delete it"
        print(f"note: {text}: an administrator can, with `invoke role --remove`")


if __name__ == "__main__":
    raise SystemExit(main())
