"""Deleting one thing at a time, for destroy, deploy, batch and image; what is gone already is no error."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from botocore.exceptions import ClientError

from aws.client import Aws, Failure, as_command_error, list_all, none_if_denied, none_if_missing
from aws.names import build_log_group, image_name
from aws.wait import IN_TRANSITION, wait_until_stable
from common import CommandError
from ecr import codebuild, repository
from lifecycle import autoscaling
from lifecycle.state import describe_config, get_state, list_configs, variant_of

RUNNING_STATES = ("InProgress", "Stopping")
DATA_KEYS = (
    r"[0-9a-f]{12}/model\.tar\.gz|(async|capture|image)/.*"  # this project's, in a bucket it may share
)


@dataclass(frozen=True)
class Item:
    """One thing on AWS, and how to remove it."""

    kind: str
    name: str
    remove: Callable[[], object]


def remove_all(project: str, found: list[Item], yes: bool) -> list[str]:
    """Show it, ask, remove it; a sentence on each thing that stays. Raises Stop when nobody can be asked."""
    for item in found:
        print(f"  {item.kind:14} {item.name}")
    if found and not yes:
        confirm(project)
    wrong = []
    for item in found:
        try:
            item.remove()
            print(f"removed {item.kind} {item.name}", flush=True)
        except Failure as error:
            wrong.append(f"{item.kind} {item.name} could not be removed: {as_command_error(error)}")
            if item.kind == "endpoint":  # which needs its configuration, and the end that was arranged for it
                wrong.append("what belongs to the endpoint stays as long as it does: repeat the command")
                break
    return wrong


def confirm(project: str) -> None:
    """Ask on the terminal. Raises Stop unless the answer is yes."""
    if not sys.stdin.isatty():
        raise CommandError(2, "nobody is here to ask: the same command with --yes removes this without")
    if input(f"remove all this of {project}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError(1, "nothing was removed")


def counted(objects: list[dict]) -> str:
    """How many, in words."""
    return f"{len(objects)} object{'s' * (len(objects) != 1)}"


def find_images(aws: Aws, project: str) -> Iterator[Item]:
    """What `invoke image` made: the repository, and CodeBuild's project and logs where that built it."""
    name = image_name(project)
    if repository.find_repository(aws, project):
        yield Item("images", name, lambda: repository.remove_repository(aws, project))
    if codebuild.check_project(aws, project):
        yield Item("builder", name, lambda: codebuild.remove_project(aws, project))
    yield from find_logs(aws, build_log_group(project))


def find_logs(aws: Aws, name: str) -> Iterator[Item]:
    """What was written, of one log group."""
    groups = list_all(aws("logs"), "describe_log_groups", "logGroups", logGroupNamePrefix=name)
    if any(group["logGroupName"] == name for group in groups):
        yield Item("logs", name, lambda: none_if_missing(aws("logs").delete_log_group, logGroupName=name))


# --- one thing at a time; what is gone already does not matter


def remove_endpoint(aws: Aws, project: str) -> None:
    """Delete the endpoint and wait until it is gone; AWS deletes none that is being made."""
    none_if_denied(autoscaling.remove, aws, project)
    state = get_state(aws, project)
    if state.status in IN_TRANSITION:
        wait_until_stable(aws, project)
    try:
        if none_if_missing(aws("sagemaker").delete_endpoint, EndpointName=project) is None:
            return
    except ClientError:
        if get_state(aws, project).status != "Deleting":  # as after a repeated request, or by the schedule
            raise
    left = wait_until_stable(aws, project)
    if left is not None:
        reason = left.get("FailureReason", "AWS gives no reason")
        raise CommandError(3, f"the endpoint {project} is still {left['EndpointStatus']}: {reason}")


def remove_parts(aws: Aws, project: str, config: str, model: str) -> None:
    """Delete a configuration, and its model unless another configuration needs it."""
    remove_config(aws, config)
    others = [describe_config(aws, one["EndpointConfigName"]) for one in list_configs(aws, project)]
    if model not in [variant_of(other)["ModelName"] for other in others if other]:
        remove_model(aws, model)


def remove_config(aws: Aws, name: str) -> None:
    """Delete a configuration."""
    none_if_missing(aws("sagemaker").delete_endpoint_config, EndpointConfigName=name)


def remove_model(aws: Aws, name: str) -> None:
    """Delete a model."""
    none_if_missing(aws("sagemaker").delete_model, ModelName=name)


def running_jobs(aws: Aws, project: str) -> list[dict]:
    """The project's batch transforms that have not ended."""
    jobs = list_all(
        aws("sagemaker"), "list_transform_jobs", "TransformJobSummaries", NameContains=f"{project}-batch-"
    )
    return [
        job
        for job in jobs
        if job["TransformJobName"].startswith(f"{project}-batch-")
        and job["TransformJobStatus"] in RUNNING_STATES
    ]


def stop_job(aws: Aws, name: str) -> None:
    """Stop a batch transform, unless it has ended by itself or is being stopped."""
    try:
        none_if_missing(aws("sagemaker").stop_transform_job, TransformJobName=name)
    except ClientError:
        job = none_if_missing(aws("sagemaker").describe_transform_job, TransformJobName=name)
        if job and job["TransformJobStatus"] == "InProgress":
            raise


def list_objects(aws: Aws, operation: str, keys: list[str], bucket: str, project: str) -> list[dict]:
    """All that S3 lists under these keys of its answer and that is this project's."""
    answers = aws("s3").get_paginator(operation).paginate(Bucket=bucket, Prefix=f"{project}/")
    try:
        found = [one for page in answers for key in keys for one in page.get(key, [])]
    except aws("s3").exceptions.NoSuchBucket:
        return []
    return [one for one in found if re.fullmatch(DATA_KEYS, one["Key"].removeprefix(f"{project}/"))]


def remove_upload(aws: Aws, place: dict[str, str]) -> None:
    """Delete the parts of an upload that was broken off, which S3 keeps and charges for."""
    none_if_missing(aws("s3").abort_multipart_upload, **place)


def remove_objects(aws: Aws, bucket: str, keys: list[dict]) -> None:
    """Delete versions of objects, a thousand at a time. Raises Stop for what S3 keeps."""
    for start in range(0, len(keys), 1000):
        request = {"Objects": keys[start : start + 1000], "Quiet": True}
        errors = aws("s3").delete_objects(Bucket=bucket, Delete=request).get("Errors", [])
        if errors:
            raise CommandError(3, f"{len(errors)} objects stay, the first because {errors[0].get('Message')}")
