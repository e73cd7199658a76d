"""The end of an endpoint: everything of a project on AWS, found by names and tags, shown, and removed."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from botocore.exceptions import ClientError

import codebuild
import registry
import scaling
import ttl
from aws import Aws, Failure, Stop, as_stop, pages, unless_denied, unless_missing
from names import build_log_group, image_name, log_group, scaled
from state import configs, describe_config, look, models, variant_of
from watch import MOVING, settled

RUNNING = ("InProgress", "Stopping")
DATA = r"[0-9a-f]{12}/model\.tar\.gz|(async|capture|image)/.*"  # this project's, in a bucket it may share


@dataclass(frozen=True)
class Item:
    """One thing on AWS, and how to remove it."""

    kind: str
    name: str
    remove: Callable[[], object]


def destroy(aws: Aws, project: str, bucket: str | None, yes: bool, data: bool) -> int:
    """Show what there is, ask, remove it; the exit code. Raises Stop when nobody can be asked.

    `bucket` is where the project's data is, besides the buckets that its models name.
    """
    look(aws, project)  # stops if the endpoint is somebody else's
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
            wrong.append(f"{item.kind} {item.name} could not be removed: {as_stop(error)}")
            if item.kind == "endpoint":  # which needs its configuration, and the end that was arranged for it
                wrong.append("what belongs to the endpoint stays as long as it does: repeat the command")
                break
    return wrong


def confirm(project: str) -> None:
    """Ask on the terminal. Raises Stop unless the answer is yes."""
    if not sys.stdin.isatty():
        raise Stop(2, "nobody is here to ask: the same command with --yes removes this without")
    if input(f"remove all this of {project}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise Stop(1, "nothing was removed")


def inventory(aws: Aws, project: str, bucket: str | None, data: bool) -> tuple[list[Item], list[str]]:
    """Everything of the project in the order in which it can be removed, and what could not be looked at."""
    found: list[Item] = []
    wrong: list[str] = []
    finders = [find_jobs, find_endpoint, find_schedule, find_scaling, find_configs, find_models, find_alarms]
    looks = [(one.__name__.removeprefix("find_"), partial(one, aws, project)) for one in finders]
    if data:
        looks += [("data", partial(find_data, aws, project, bucket))]
        looks += [("logs", partial(find_logs, aws, log_group(project)))]
        looks += [("images", partial(find_image, aws, project))]
    for what, look_for in looks:
        try:
            found += look_for()
        except Failure as error:
            wrong.append(f"{what} could not be looked for: {as_stop(error)}")
    return found, wrong


def buckets(aws: Aws, project: str, bucket: str | None) -> set[str]:
    """Where the project's data may be: as `bucket` and its models say, else SageMaker's own bucket."""
    known = {bucket} if bucket else set()
    for model in models(aws, project):
        found = unless_missing(aws("sagemaker").describe_model, ModelName=model["ModelName"]) or {}
        address = found.get("PrimaryContainer", {}).get("ModelDataUrl", "")
        known |= set(re.findall("^s3://([^/]+)/", address))
    return known or {f"sagemaker-{aws.region}-{aws.account}"}


def find_schedule(aws: Aws, project: str) -> Iterator[Item]:
    """The end that --ttl arranged."""
    if end := ttl.end_of(aws, project):
        yield Item("schedule", f"for {end:%Y-%m-%d %H:%M} UTC", lambda: ttl.cancel(aws, project))


def find_scaling(aws: Aws, project: str) -> Iterator[Item]:
    """Autoscaling, with its policies."""
    if scaling.target(aws, project):
        yield Item("scaling", scaled(project), lambda: scaling.cancel(aws, project))


def find_jobs(aws: Aws, project: str) -> Iterator[Item]:
    """Batch transforms that are still running: they are stopped; AWS keeps finished ones, without charge."""
    for job in running_jobs(aws, project):
        name = job["TransformJobName"]
        yield Item("transform job", name, lambda name=name: stop_job(aws, name))


def find_endpoint(aws: Aws, project: str) -> Iterator[Item]:
    """The endpoint."""
    if look(aws, project).endpoint:
        yield Item("endpoint", project, lambda: remove_endpoint(aws, project))


def find_configs(aws: Aws, project: str) -> Iterator[Item]:
    """Configurations, which cost nothing."""
    for config in configs(aws, project):
        name = config["EndpointConfigName"]
        yield Item("configuration", name, lambda name=name: remove_config(aws, name))


def find_models(aws: Aws, project: str) -> Iterator[Item]:
    """Models, which cost nothing; their archives lie in S3."""
    for model in models(aws, project):
        name = model["ModelName"]
        yield Item("model", name, lambda name=name: remove_model(aws, name))


def find_alarms(aws: Aws, project: str) -> Iterator[Item]:
    """The project's own alarms."""
    for name in scaling.alarms(aws, project):
        yield Item("alarm", name, lambda name=name: scaling.remove_alarms(aws, [name]))


def find_data(aws: Aws, project: str, bucket: str | None) -> Iterator[Item]:
    """What this project keeps in S3: archives, captures, asynchronous questions and answers."""
    for one in sorted(buckets(aws, project, bucket)):
        yield from find_in_bucket(aws, project, one)


def find_in_bucket(aws: Aws, project: str, bucket: str) -> Iterator[Item]:
    """The project's data in one bucket."""
    for begun in listed(aws, "list_multipart_uploads", ["Uploads"], bucket, project):
        place = {"Bucket": bucket, "Key": begun["Key"], "UploadId": begun["UploadId"]}
        name = f"s3://{bucket}/{begun['Key']} (never finished)"
        yield Item("upload", name, lambda place=place: remove_upload(aws, place))
    objects = listed(aws, "list_object_versions", ["Versions", "DeleteMarkers"], bucket, project)
    if objects:
        size = sum(one.get("Size", 0) for one in objects) / 1e6
        name = f"s3://{bucket}/{project}/ ({counted(objects)}, {size:.1f} MB)"
        keys = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in objects]
        yield Item("data", name, lambda: remove_objects(aws, bucket, keys))


def counted(objects: list[dict]) -> str:
    """How many, in words."""
    return f"{len(objects)} object{'s' * (len(objects) != 1)}"


def find_image(aws: Aws, project: str) -> Iterator[Item]:
    """What `invoke image` made: the repository, and CodeBuild's project and logs where that built it."""
    name = image_name(project)
    if registry.find_repository(aws, project):
        yield Item("images", name, lambda: registry.remove_repository(aws, project))
    if codebuild.check_project(aws, project):
        yield Item("builder", name, lambda: codebuild.remove_project(aws, project))
    yield from find_logs(aws, build_log_group(project))


def find_logs(aws: Aws, name: str) -> Iterator[Item]:
    """What was written, of one log group."""
    groups = pages(aws("logs"), "describe_log_groups", "logGroups", logGroupNamePrefix=name)
    if any(group["logGroupName"] == name for group in groups):
        yield Item("logs", name, lambda: unless_missing(aws("logs").delete_log_group, logGroupName=name))


# --- one thing at a time; what is gone already does not matter


def remove_endpoint(aws: Aws, project: str) -> None:
    """Delete the endpoint and wait until it is gone; AWS deletes none that is being made."""
    unless_denied(scaling.cancel, aws, project)
    state = look(aws, project)
    if state.status in MOVING:
        settled(aws, project)
    try:
        if unless_missing(aws("sagemaker").delete_endpoint, EndpointName=project) is None:
            return
    except ClientError:
        if look(aws, project).status != "Deleting":  # as after a repeated request, or by the schedule
            raise
    left = settled(aws, project)
    if left is not None:
        reason = left.get("FailureReason", "AWS gives no reason")
        raise Stop(3, f"the endpoint {project} is still {left['EndpointStatus']}: {reason}")


def remove_parts(aws: Aws, project: str, config: str, model: str) -> None:
    """Delete a configuration, and its model unless another configuration needs it."""
    remove_config(aws, config)
    others = [describe_config(aws, one["EndpointConfigName"]) for one in configs(aws, project)]
    if model not in [variant_of(other)["ModelName"] for other in others if other]:
        remove_model(aws, model)


def remove_config(aws: Aws, name: str) -> None:
    """Delete a configuration."""
    unless_missing(aws("sagemaker").delete_endpoint_config, EndpointConfigName=name)


def remove_model(aws: Aws, name: str) -> None:
    """Delete a model."""
    unless_missing(aws("sagemaker").delete_model, ModelName=name)


def running_jobs(aws: Aws, project: str) -> list[dict]:
    """The project's batch transforms that have not ended."""
    jobs = pages(
        aws("sagemaker"), "list_transform_jobs", "TransformJobSummaries", NameContains=f"{project}-batch-"
    )
    return [
        job
        for job in jobs
        if job["TransformJobName"].startswith(f"{project}-batch-") and job["TransformJobStatus"] in RUNNING
    ]


def stop_job(aws: Aws, name: str) -> None:
    """Stop a batch transform, unless it has ended by itself or is being stopped."""
    try:
        unless_missing(aws("sagemaker").stop_transform_job, TransformJobName=name)
    except ClientError:
        job = unless_missing(aws("sagemaker").describe_transform_job, TransformJobName=name)
        if job and job["TransformJobStatus"] == "InProgress":
            raise


def bucket_of(build: Path) -> str | None:
    """The bucket that package/upload.py wrote down, if it did here."""
    try:
        return json.loads((build / "uploaded.json").read_text())["bucket"]
    except (OSError, ValueError, KeyError):
        return None


def listed(aws: Aws, operation: str, keys: list[str], bucket: str, project: str) -> list[dict]:
    """All that S3 lists under these keys of its answer and that is this project's."""
    answers = aws("s3").get_paginator(operation).paginate(Bucket=bucket, Prefix=f"{project}/")
    try:
        found = [one for page in answers for key in keys for one in page.get(key, [])]
    except aws("s3").exceptions.NoSuchBucket:
        return []
    return [one for one in found if re.fullmatch(DATA, one["Key"].removeprefix(f"{project}/"))]


def remove_upload(aws: Aws, place: dict[str, str]) -> None:
    """Delete the parts of an upload that was broken off, which S3 keeps and charges for."""
    unless_missing(aws("s3").abort_multipart_upload, **place)


def remove_objects(aws: Aws, bucket: str, keys: list[dict]) -> None:
    """Delete versions of objects, a thousand at a time. Raises Stop for what S3 keeps."""
    for start in range(0, len(keys), 1000):
        request = {"Objects": keys[start : start + 1000], "Quiet": True}
        errors = aws("s3").delete_objects(Bucket=bucket, Delete=request).get("Errors", [])
        if errors:
            raise Stop(3, f"{len(errors)} objects stay, the first because {errors[0].get('Message')}")
