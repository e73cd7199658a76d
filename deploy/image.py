"""The serving image, made and put into ECR: `python deploy/image.py --project pets --build build/pets`.

It is what serve/Dockerfile builds, for `stack: slim`. Its tag is made from its content, so an unchanged one
is built once. Docker here builds it, or CodeBuild in your account; ECR scans it; build/<project>/image.json
says where it is. `--delete` removes all of it.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from aws import roles
from aws.client import Aws, AwsError, connect, is_denied, none_if_missing, run_command
from aws.names import build_role_name, check_project, image_name
from common import CommandError
from ecr import codebuild, docker_build, scan
from ecr.catalogue import TABLE, slim_architecture
from ecr.repository import create_repository, ensure_docker_manifest, find_image, find_repository, push
from lifecycle import remove
from lifecycle.settings import KINDS
from lifecycle.state import describe_config, get_state, variant_of

BUILDERS = ("docker", "codebuild")


def main(argv: list[str] | None = None) -> int:
    """Make the image, or remove it; the exit code."""
    args = arguments(argv)

    def run() -> int:
        check_project(args.project)
        return (delete if args.delete else make)(connect(), args)

    return run_command(run)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    add = parser.add_argument
    add("--project", required=True, help="names the repository")
    add("--build", type=Path, default=Path("build"), help="build/<project>, where image.json is written")
    add("--kind", choices=KINDS, default="real-time", help="of endpoint that runs it (%(default)s)")
    add("--instance", default="ml.c7i.large", help="type whose processor it is for (%(default)s)")
    add("--bucket", help="where CodeBuild finds what it builds; default: SageMaker's own")
    add("--builder", choices=BUILDERS, help="default: docker where it runs here, else codebuild")
    add("--fail-on", choices=("critical", "high"), help="end with 1 if ECR's scan finds this or worse")
    add("--base", help="in place of the Dockerfile's own base image")
    add("--delete", action="store_true", help="remove the images and all that made them")
    add("--yes", action="store_true", help="delete without asking, even what a live endpoint uses")
    return parser.parse_args(argv)


def make(aws: Aws, args: argparse.Namespace) -> int:
    """Build, push and scan the image, as far as that is not done yet. Raises Stop."""
    project, architecture = args.project, slim_architecture(args.kind, args.instance)
    tag = docker_build.content_tag(architecture, args.base)
    repository = find_repository(aws, project)
    known = repository and find_image(aws, project, tag)
    if not known:
        repository = build(aws, args, architecture, tag)
    image = ensure_docker_manifest(aws, project, tag, architecture)
    size, digest = image["imageSizeInBytes"], image["imageDigest"]
    name = f"{repository['repositoryUri']}:{tag}"
    how = "there already" if known else "pushed"
    print(f"{name}: {how}, {size / 1e6:.0f} MB; {storage(size)}", flush=True)
    found = scan.wait_for_findings(aws, project, digest)
    scan.print_findings(found)
    scan.check_findings(found, args.fail_on)
    facts = {"uri": f"{repository['repositoryUri']}@{digest}", "digest": digest, "tag": tag}
    facts |= {"architecture": architecture, "base": args.base, "bytes": size}
    facts |= {"region": aws.region, "account": aws.account}
    write(args.build / "image.json", json.dumps(facts, indent=2) + "\n")
    print(f"{args.build / 'image.json'}: {facts['uri']}")
    return 0


def build(aws: Aws, args: argparse.Namespace, architecture: str, tag: str) -> dict:
    """Build the image and push it to the repository, which is made if it is missing. Raises Stop."""
    how = args.builder or ("docker" if docker_build.is_docker_running() else "codebuild")
    if how == "docker" and args.builder and not docker_build.is_docker_running():
        raise CommandError(
            3, "no Docker engine answers here: start one, or leave `builder` out for CodeBuild"
        )
    if how == "codebuild":
        print(
            f"{tag} is built by CodeBuild, which takes {codebuild.price_sentence(architecture)}", flush=True
        )
        codebuild.find_build_role(aws, args.project)  # before anything is made
        repository = create_repository(aws, args.project)
        image = f"{repository['repositoryUri']}:{tag}"
        codebuild.build(aws, args.project, args.bucket, image, architecture, args.base)
        return repository
    print(f"{tag} is built by Docker here", flush=True)
    local = build_here(architecture, args.base)
    repository = create_repository(aws, args.project)
    push(aws, repository, local, tag)
    return repository


def build_here(architecture: str, base: str | None) -> str:
    """The local image's name. Raises Stop, with a way out if this machine is of another kind."""
    try:
        return docker_build.build(architecture, base)
    except CommandError as stop:
        here = docker_build.host_architecture()
        if architecture == here:
            raise
        text = f"{stop}; or, since this machine is {here} and the image {architecture}"
        raise CommandError(stop.code, f"{text}, have it built in your account: --builder codebuild") from None


def storage(size: int) -> str:
    """What ECR takes for keeping so many bytes, and what ends that."""
    known = TABLE["ecr"]["per_gb_month"]
    cost = f"${size / 1e9 * known['price']:.2f} a month ({known['region']}, {known['date']})"
    return f"ECR keeps it for {cost} until `invoke image --delete`"


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    os.replace(beside, path)


# --- the end


def delete(aws: Aws, args: argparse.Namespace) -> int:
    """Show what there is, ask, remove it; the exit code. Raises Stop."""
    project = args.project
    if used := used_by(aws, project):
        text = f"the endpoint {project} uses {used} and could not start another instance without it"
        if not args.yes:
            raise CommandError(1, f"{text}: end it first with `invoke destroy`, or insist with --yes")
        print(f"note: {text}")
    found, made = [*remove.find_images(aws, project), *find_context(aws, args)], find_role(aws, project)
    if made:
        print(f"  {'role':14} {made}")
    if not found and not made:
        print(f"no image of {project} is on AWS in {aws.region}, and nothing that makes one")
    if made and not found and not args.yes:
        remove.confirm(project)
    failed = remove.remove_all(project, found, args.yes)
    if made:
        remove_role(aws, project, made)
    (args.build / "image.json").unlink(missing_ok=True)
    for sentence in failed:
        print(f"error: {sentence}", file=sys.stderr)
    return 3 if failed else 0


def used_by(aws: Aws, project: str) -> str | None:
    """The image that the project's endpoint runs, if it is from the project's own repository."""
    endpoint = get_state(aws, project).endpoint
    config = endpoint and describe_config(aws, endpoint["EndpointConfigName"])
    if not config:
        return None
    name = variant_of(config)["ModelName"]
    model = none_if_missing(aws("sagemaker").describe_model, ModelName=name)
    image = model["PrimaryContainer"]["Image"] if model else ""
    return image if f"/{image_name(project)}@" in image else None


def find_context(aws: Aws, args: argparse.Namespace) -> list[remove.Item]:
    """What CodeBuild built, in S3."""
    bucket, folder = args.bucket or f"sagemaker-{aws.region}-{aws.account}", f"{args.project}/image/"
    kinds = ["Versions", "DeleteMarkers"]
    objects = remove.list_objects(aws, "list_object_versions", kinds, bucket, args.project)
    ours = [one for one in objects if one["Key"].startswith(folder)]
    keys = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in ours]
    name = f"s3://{bucket}/{folder} ({remove.counted(keys)})"
    return [remove.Item("data", name, lambda: remove.remove_objects(aws, bucket, keys))] if keys else []


def find_role(aws: Aws, project: str) -> str | None:
    """The name of the role that CodeBuild took on, if there is one. Raises Stop if it is somebody else's."""
    name = build_role_name(project)
    made = none_if_missing(aws("iam").get_role, RoleName=name)
    if made:
        roles.check_role_is_ours(made["Role"], project)
    return name if made else None


def remove_role(aws: Aws, project: str, name: str) -> None:
    """Delete the role; where you may not, it stays, which costs nothing."""
    try:
        roles.remove_role(aws, project, name)
        print(f"removed role {name}")
    except AwsError as error:
        if not is_denied(error):
            raise
        print(f"note: the role {name} stays, for you may not delete it: `invoke role --remove` does")


if __name__ == "__main__":
    raise SystemExit(main())
