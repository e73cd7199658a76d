"""The verb `destroy`: find everything of a project by names and tags, print it, ask, and remove it."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from aws.client import Aws, Failure, as_command_error, none_if_missing
from aws.names import log_group, scalable_resource_id
from lifecycle import alarms, autoscaling, ttl
from lifecycle.remove import (
    Item,
    counted,
    find_images,
    find_logs,
    list_objects,
    remove_all,
    remove_config,
    remove_endpoint,
    remove_model,
    remove_objects,
    remove_upload,
    running_jobs,
    stop_job,
)
from lifecycle.state import get_state, list_configs, list_models


def destroy(aws: Aws, project: str, bucket: str | None, *, yes: bool, data: bool) -> int:
    """Print everything of a project, ask unless `yes`, remove it; returns the exit code. Raises CommandError.

    With `data`, also the project's data in S3 and ECR, and its logs; `bucket` is one place of that data, the
    others are the buckets of its models.
    """
    get_state(aws, project)  # raises if the endpoint is somebody else's
    found, errors = inventory(aws, project, bucket, data=data)
    if not found and not errors:
        rest = "" if data else " (S3, ECR and logs were not searched)"
        print(f"nothing of {project} is on AWS in {aws.region}{rest}")
        return 0
    errors += remove_all(project, found, yes=yes)
    if not data:
        print("data in S3 and ECR, and the logs, were kept: --data removes them, too")
    for sentence in errors:
        print(f"error: {sentence}", file=sys.stderr)
    return 3 if errors else 0


def inventory(aws: Aws, project: str, bucket: str | None, *, data: bool) -> tuple[list[Item], list[str]]:
    """Everything of the project in the order in which it can be removed; a sentence on each failed search."""
    searches: dict[str, Callable[[], Iterable[Item]]] = {
        "jobs": lambda: find_jobs(aws, project),
        "endpoint": lambda: find_endpoint(aws, project),
        "schedule": lambda: find_schedule(aws, project),
        "scaling": lambda: find_scaling(aws, project),
        "configurations": lambda: find_configs(aws, project),
        "models": lambda: find_models(aws, project),
        "alarms": lambda: find_alarms(aws, project),
    }
    if data:
        searches["data"] = lambda: find_data(aws, project, bucket)
        searches["logs"] = lambda: find_logs(aws, log_group(project))
        searches["images"] = lambda: find_images(aws, project)
    found: list[Item] = []
    errors: list[str] = []
    for what, search in searches.items():
        try:
            found += search()
        except Failure as error:
            errors.append(f"{what} could not be listed: {as_command_error(error)}")
    return found, errors


def find_jobs(aws: Aws, project: str) -> Iterator[Item]:
    """Batch transforms that are running, to be stopped; AWS keeps ended ones, without charge."""
    for job in running_jobs(aws, project):
        name = job["TransformJobName"]
        yield Item("transform job", name, partial(stop_job, aws, name))


def find_endpoint(aws: Aws, project: str) -> Iterator[Item]:
    """The endpoint."""
    if get_state(aws, project).endpoint:
        yield Item("endpoint", project, partial(remove_endpoint, aws, project))


def find_schedule(aws: Aws, project: str) -> Iterator[Item]:
    """The schedule of --ttl."""
    if time := ttl.deletion_time(aws, project):
        yield Item("schedule", f"for {time:%Y-%m-%d %H:%M} UTC", partial(ttl.cancel, aws, project))


def find_scaling(aws: Aws, project: str) -> Iterator[Item]:
    """Autoscaling, with its policies."""
    if autoscaling.find_target(aws, project):
        yield Item("scaling", scalable_resource_id(project), partial(autoscaling.remove, aws, project))


def find_configs(aws: Aws, project: str) -> Iterator[Item]:
    """Configurations, which are not billed."""
    for config in list_configs(aws, project):
        name = config["EndpointConfigName"]
        yield Item("configuration", name, partial(remove_config, aws, name))


def find_models(aws: Aws, project: str) -> Iterator[Item]:
    """Models, which are not billed; their archives are in S3."""
    for model in list_models(aws, project):
        name = model["ModelName"]
        yield Item("model", name, partial(remove_model, aws, name))


def find_alarms(aws: Aws, project: str) -> Iterator[Item]:
    """The project's own alarms."""
    for name in alarms.list_alarms(aws, project):
        yield Item("alarm", name, partial(alarms.delete_alarms, aws, [name]))


# --- data in S3


def find_data(aws: Aws, project: str, bucket: str | None) -> Iterator[Item]:
    """The project's data in S3: archives, captured requests, input and output of asynchronous endpoints."""
    for name in sorted(buckets(aws, project, bucket)):
        yield from find_in_bucket(aws, project, name)


def buckets(aws: Aws, project: str, bucket: str | None) -> set[str]:
    """The buckets with the project's data: `bucket` and its models', else SageMaker's default bucket."""
    names = {bucket} if bucket else set()
    for summary in list_models(aws, project):
        model = none_if_missing(aws("sagemaker").describe_model, ModelName=summary["ModelName"]) or {}
        url = model.get("PrimaryContainer", {}).get("ModelDataUrl", "")
        names |= set(re.findall("^s3://([^/]+)/", url))
    return names or {f"sagemaker-{aws.region}-{aws.account}"}


def find_in_bucket(aws: Aws, project: str, bucket: str) -> Iterator[Item]:
    """The project's data in one bucket: unfinished uploads, and every version of every object."""
    for upload in list_objects(aws, "list_multipart_uploads", ["Uploads"], bucket, project):
        request = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        name = f"s3://{bucket}/{upload['Key']} (unfinished)"
        yield Item("upload", name, partial(remove_upload, aws, request))
    versions = list_objects(aws, "list_object_versions", ["Versions", "DeleteMarkers"], bucket, project)
    if versions:
        size = sum(version.get("Size", 0) for version in versions) / 1e6
        name = f"s3://{bucket}/{project}/ ({counted(versions)}, {size:.1f} MB)"
        keys = [{"Key": version["Key"], "VersionId": version["VersionId"]} for version in versions]
        yield Item("data", name, partial(remove_objects, aws, bucket, keys))


def uploaded_bucket(build: Path) -> str | None:
    """The bucket that package/upload.py wrote into the build folder, if any."""
    try:
        return json.loads((build / "uploaded.json").read_text())["bucket"]
    except (OSError, ValueError, KeyError):
        return None
