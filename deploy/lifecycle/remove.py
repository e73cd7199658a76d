"""Deleting one thing at a time, for destroy, deploy, batch and image; what does not exist is no error."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from botocore.exceptions import ClientError

from aws.client import Aws, Failure, as_command_error, list_all, none_if_denied, none_if_missing
from aws.names import build_log_group, image_name
from aws.wait import IN_TRANSITION, wait_until_stable
from common import CommandError
from ecr import codebuild, repository
from lifecycle import autoscaling
from lifecycle.state import describe_config, get_state, list_configs, variant_of

RUNNING_STATES = ("InProgress", "Stopping")
# This project's keys below PROJECT/: the bucket may hold other objects there.
DATA_KEYS = r"[0-9a-f]{12}/model\.tar\.gz|(async|capture|image)/.*"


@dataclass(frozen=True)
class Item:
    """One thing on AWS, and how to remove it."""

    kind: str
    name: str
    remove: Callable[[], object]


def remove_all(project: str, found: list[Item], *, yes: bool) -> list[str]:
    """Print the items, ask unless `yes`, remove them; a sentence for each failure. Raises CommandError."""
    for item in found:
        print(f"  {item.kind:14} {item.name}")
    if found and not yes:
        confirm(project)
    errors = []
    for item in found:
        try:
            item.remove()
            print(f"removed {item.kind} {item.name}", flush=True)
        except Failure as error:
            errors.append(f"{item.kind} {item.name} could not be removed: {as_command_error(error)}")
            if item.kind == "endpoint":  # it still needs its configuration and its scheduled deletion
                errors.append("everything else is kept as long as the endpoint exists: run the command again")
                break
    return errors


def confirm(project: str) -> None:
    """Ask on the terminal. Raises CommandError unless the answer is yes."""
    if not sys.stdin.isatty():
        raise CommandError(2, "stdin is not a terminal: pass --yes to confirm")
    if input(f"remove all this of {project}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError(1, "nothing was removed")


# --- the endpoint and its parts


def remove_endpoint(aws: Aws, project: str) -> None:
    """Delete the endpoint and wait until it does not exist. Raises CommandError if AWS did not delete it."""
    none_if_denied(autoscaling.remove, aws, project)
    state = get_state(aws, project)
    if state.status in IN_TRANSITION:  # in which AWS rejects DeleteEndpoint
        wait_until_stable(aws, project)
    try:
        if none_if_missing(aws("sagemaker").delete_endpoint, EndpointName=project) is None:
            return
    except ClientError:
        # Deleting: after a request that boto3 retried, or by the schedule.
        if get_state(aws, project).status != "Deleting":
            raise
    endpoint = wait_until_stable(aws, project)
    if endpoint is not None:
        reason = endpoint.get("FailureReason", "AWS gives no reason")
        raise CommandError(3, f"the endpoint {project} is still {endpoint['EndpointStatus']}: {reason}")


def remove_parts(aws: Aws, project: str, config: str, model: str) -> None:
    """Delete a configuration, and its model unless another configuration uses it."""
    remove_config(aws, config)
    others = [describe_config(aws, summary["EndpointConfigName"]) for summary in list_configs(aws, project)]
    if model not in [variant_of(other)["ModelName"] for other in others if other]:
        remove_model(aws, model)


def remove_config(aws: Aws, name: str) -> None:
    """Delete a configuration."""
    none_if_missing(aws("sagemaker").delete_endpoint_config, EndpointConfigName=name)


def remove_model(aws: Aws, name: str) -> None:
    """Delete a model."""
    none_if_missing(aws("sagemaker").delete_model, ModelName=name)


# --- batch transforms


def running_jobs(aws: Aws, project: str) -> list[dict]:
    """The project's batch transforms that have not ended (ListTransformJobs)."""
    prefix = f"{project}-batch-"
    jobs = list_all(aws("sagemaker"), "list_transform_jobs", "TransformJobSummaries", NameContains=prefix)
    ours = [job for job in jobs if job["TransformJobName"].startswith(prefix)]
    return [job for job in ours if job["TransformJobStatus"] in RUNNING_STATES]


def stop_job(aws: Aws, name: str) -> None:
    """Stop a batch transform, unless it has ended or is being stopped."""
    try:
        none_if_missing(aws("sagemaker").stop_transform_job, TransformJobName=name)
    except ClientError:
        job = none_if_missing(aws("sagemaker").describe_transform_job, TransformJobName=name)
        if job and job["TransformJobStatus"] == "InProgress":
            raise


# --- images and logs


def find_images(aws: Aws, project: str) -> Iterator[Item]:
    """What `invoke image` created: the repository, and CodeBuild's project and logs."""
    name = image_name(project)
    if repository.find_repository(aws, project):
        yield Item("images", name, partial(repository.remove_repository, aws, project))
    if codebuild.check_project(aws, project):
        yield Item("builder", name, partial(codebuild.remove_project, aws, project))
    yield from find_logs(aws, build_log_group(project))


def find_logs(aws: Aws, name: str) -> Iterator[Item]:
    """A log group."""
    groups = list_all(aws("logs"), "describe_log_groups", "logGroups", logGroupNamePrefix=name)
    if any(group["logGroupName"] == name for group in groups):
        delete = aws("logs").delete_log_group
        yield Item("logs", name, partial(none_if_missing, delete, logGroupName=name))


# --- data in S3


def counted(objects: list[dict]) -> str:
    """Their number, such as "1 object" or "2 objects"."""
    return f"{len(objects)} object{'s' * (len(objects) != 1)}"


def list_objects(aws: Aws, operation: str, keys: list[str], bucket: str, project: str) -> list[dict]:
    """The project's entries under `keys` in an S3 operation's pages; none if the bucket does not exist."""
    pages = aws("s3").get_paginator(operation).paginate(Bucket=bucket, Prefix=f"{project}/")
    try:
        found = [entry for page in pages for key in keys for entry in page.get(key, [])]
    except aws("s3").exceptions.NoSuchBucket:
        return []
    return [entry for entry in found if re.fullmatch(DATA_KEYS, entry["Key"].removeprefix(f"{project}/"))]


def remove_upload(aws: Aws, upload: dict[str, str]) -> None:
    """Delete the parts of an unfinished multipart upload, which S3 stores and bills."""
    none_if_missing(aws("s3").abort_multipart_upload, **upload)


def remove_objects(aws: Aws, bucket: str, keys: list[dict]) -> None:
    """Delete object versions, 1,000 per request (S3's limit). Raises CommandError."""
    for start in range(0, len(keys), 1000):
        request = {"Objects": keys[start : start + 1000], "Quiet": True}
        errors = aws("s3").delete_objects(Bucket=bucket, Delete=request).get("Errors", [])
        if errors:
            reason = errors[0].get("Message")
            raise CommandError(3, f"{len(errors)} objects were not deleted, the first because {reason}")
