"""The end of an endpoint: everything of a project on AWS, found by names and tags, shown, and removed."""

import json
import re
import sys
from collections.abc import Iterator
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


def destroy(aws: Aws, project: str, bucket: str | None, yes: bool, data: bool) -> int:
    """Show what there is, ask, remove it; the exit code. Raises Stop when nobody can be asked.

    `bucket` is where the project's data is, besides the buckets that its models name.
    """
    get_state(aws, project)  # stops if the endpoint is somebody else's
    found, wrong = inventory(aws, project, bucket, data)
    if not found and not wrong:
        print(f"nothing of {project} is on AWS in {aws.region}" + ("" if data else " (data in S3 apart)"))
        return 0
    wrong += remove_all(project, found, yes)
    if not data:
        print("what is in S3 and ECR, and the logs, stay: --data removes them too")
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 3 if wrong else 0


def inventory(aws: Aws, project: str, bucket: str | None, data: bool) -> tuple[list[Item], list[str]]:
    """Everything of the project in the order in which it can be removed, and what could not be looked at."""
    found: list[Item] = []
    wrong: list[str] = []
    finders = [find_jobs, find_endpoint, find_schedule, find_scaling, find_configs, find_models, find_alarms]
    looks = [(one.__name__.removeprefix("find_"), partial(one, aws, project)) for one in finders]
    if data:
        looks += [("data", partial(find_data, aws, project, bucket))]
        looks += [("logs", partial(find_logs, aws, log_group(project)))]
        looks += [("images", partial(find_images, aws, project))]
    for what, look_for in looks:
        try:
            found += look_for()
        except Failure as error:
            wrong.append(f"{what} could not be looked for: {as_command_error(error)}")
    return found, wrong


def buckets(aws: Aws, project: str, bucket: str | None) -> set[str]:
    """Where the project's data may be: as `bucket` and its models say, else SageMaker's own bucket."""
    known = {bucket} if bucket else set()
    for model in list_models(aws, project):
        found = none_if_missing(aws("sagemaker").describe_model, ModelName=model["ModelName"]) or {}
        address = found.get("PrimaryContainer", {}).get("ModelDataUrl", "")
        known |= set(re.findall("^s3://([^/]+)/", address))
    return known or {f"sagemaker-{aws.region}-{aws.account}"}


def find_schedule(aws: Aws, project: str) -> Iterator[Item]:
    """The end that --ttl arranged."""
    if end := ttl.deletion_time(aws, project):
        yield Item("schedule", f"for {end:%Y-%m-%d %H:%M} UTC", lambda: ttl.cancel(aws, project))


def find_scaling(aws: Aws, project: str) -> Iterator[Item]:
    """Autoscaling, with its policies."""
    if autoscaling.find_target(aws, project):
        yield Item("scaling", scalable_resource_id(project), lambda: autoscaling.remove(aws, project))


def find_jobs(aws: Aws, project: str) -> Iterator[Item]:
    """Batch transforms that are still running: they are stopped; AWS keeps finished ones, without charge."""
    for job in running_jobs(aws, project):
        name = job["TransformJobName"]
        yield Item("transform job", name, lambda name=name: stop_job(aws, name))


def find_endpoint(aws: Aws, project: str) -> Iterator[Item]:
    """The endpoint."""
    if get_state(aws, project).endpoint:
        yield Item("endpoint", project, lambda: remove_endpoint(aws, project))


def find_configs(aws: Aws, project: str) -> Iterator[Item]:
    """Configurations, which cost nothing."""
    for config in list_configs(aws, project):
        name = config["EndpointConfigName"]
        yield Item("configuration", name, lambda name=name: remove_config(aws, name))


def find_models(aws: Aws, project: str) -> Iterator[Item]:
    """Models, which cost nothing; their archives lie in S3."""
    for model in list_models(aws, project):
        name = model["ModelName"]
        yield Item("model", name, lambda name=name: remove_model(aws, name))


def find_alarms(aws: Aws, project: str) -> Iterator[Item]:
    """The project's own alarms."""
    for name in alarms.list_alarms(aws, project):
        yield Item("alarm", name, lambda name=name: alarms.delete_alarms(aws, [name]))


def find_data(aws: Aws, project: str, bucket: str | None) -> Iterator[Item]:
    """What this project keeps in S3: archives, captures, asynchronous questions and answers."""
    for one in sorted(buckets(aws, project, bucket)):
        yield from find_in_bucket(aws, project, one)


def find_in_bucket(aws: Aws, project: str, bucket: str) -> Iterator[Item]:
    """The project's data in one bucket."""
    for begun in list_objects(aws, "list_multipart_uploads", ["Uploads"], bucket, project):
        place = {"Bucket": bucket, "Key": begun["Key"], "UploadId": begun["UploadId"]}
        name = f"s3://{bucket}/{begun['Key']} (never finished)"
        yield Item("upload", name, lambda place=place: remove_upload(aws, place))
    objects = list_objects(aws, "list_object_versions", ["Versions", "DeleteMarkers"], bucket, project)
    if objects:
        size = sum(one.get("Size", 0) for one in objects) / 1e6
        name = f"s3://{bucket}/{project}/ ({counted(objects)}, {size:.1f} MB)"
        keys = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in objects]
        yield Item("data", name, lambda: remove_objects(aws, bucket, keys))


def uploaded_bucket(build: Path) -> str | None:
    """The bucket that package/upload.py wrote down, if it did here."""
    try:
        return json.loads((build / "uploaded.json").read_text())["bucket"]
    except (OSError, ValueError, KeyError):
        return None
