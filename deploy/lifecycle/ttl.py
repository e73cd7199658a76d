"""The endpoint's scheduled deletion (`--ttl`): a one-time schedule in AWS, independent of this machine."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial

from aws.client import Aws, none_if_missing, retry_until_consistent
from aws.names import ttl_name
from common import CommandError

MIN_SECONDS = 15 * 60  # creating an endpoint takes most of that, during which AWS does not delete it
# DeleteEndpoint is rejected while the endpoint is being updated: retry for a day.
RETRY_POLICY = {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86400}


def check(aws: Aws, project: str, seconds: int | None) -> str | None:
    """The ARN of the scheduler's role, None without a `ttl`. Raises CommandError if the role is missing."""
    if not seconds:
        return None
    if seconds < MIN_SECONDS:
        text = f"`ttl` is at least {MIN_SECONDS // 60}m"
        raise CommandError(2, f"{text}, because creating an endpoint takes about that long")
    role = none_if_missing(aws("iam").get_role, RoleName=ttl_name(project))
    if role is None:
        raise CommandError(2, f"`ttl` needs the role {ttl_name(project)}: `invoke role --create` creates it")
    return role["Role"]["Arn"]


def schedule_deletion(aws: Aws, project: str, role: str, seconds: int) -> datetime:
    """Create or move the schedule; returns the time of the deletion."""
    time = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    request = {
        "Name": ttl_name(project),
        "ScheduleExpression": f"at({time:%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Description": f"deletes the SageMaker endpoint {project}",
        "Target": {
            "Arn": f"arn:{aws.partition}:scheduler:::aws-sdk:sagemaker:deleteEndpoint",
            "RoleArn": role,
            "Input": json.dumps({"EndpointName": project}),
            "RetryPolicy": RETRY_POLICY,
        },
    }
    scheduler = aws("scheduler")
    if none_if_missing(partial(retry_until_consistent, scheduler.update_schedule), **request) is None:
        retry_until_consistent(scheduler.create_schedule, **request)
    return time


def deletion_time(aws: Aws, project: str) -> datetime | None:
    """When the endpoint will be deleted; None without a schedule."""
    schedule = none_if_missing(aws("scheduler").get_schedule, Name=ttl_name(project))
    if schedule is None:
        return None
    text = schedule["ScheduleExpression"].removeprefix("at(").rstrip(")")
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cancel(aws: Aws, project: str) -> bool:
    """Delete the schedule; whether there was one."""
    return none_if_missing(aws("scheduler").delete_schedule, Name=ttl_name(project)) is not None
