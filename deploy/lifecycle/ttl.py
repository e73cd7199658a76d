"""An endpoint's end, arranged beforehand: a one-time schedule at AWS deletes it, whatever happens here."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial

from aws.client import Aws, none_if_missing, retry_until_consistent
from aws.names import ttl_name
from common import CommandError

MIN_SECONDS = 15 * 60  # seconds; making an endpoint takes most of that, and meanwhile it cannot be deleted
RETRY_POLICY = {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86400}  # while it is being updated


def check(aws: Aws, project: str, seconds: int | None) -> str | None:
    """The role that the scheduler takes on, None where none is needed. Raises Stop when it is missing."""
    if not seconds:
        return None
    if seconds < MIN_SECONDS:
        raise CommandError(
            2, f"`ttl` is at least {MIN_SECONDS // 60}m, for that is about how long making an endpoint takes"
        )
    role = none_if_missing(aws("iam").get_role, RoleName=ttl_name(project))
    if role is None:
        raise CommandError(2, f"`ttl` needs the role {ttl_name(project)}: `invoke role --create` makes it")
    return role["Role"]["Arn"]


def schedule_deletion(aws: Aws, project: str, role: str, seconds: int) -> datetime:
    """Make the schedule, or move it; returns when the endpoint will be deleted."""
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    request = {
        "Name": ttl_name(project),
        "ScheduleExpression": f"at({end:%Y-%m-%dT%H:%M:%S})",
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
    return end


def deletion_time(aws: Aws, project: str) -> datetime | None:
    """When the endpoint will be deleted; None if nothing is arranged."""
    schedule = none_if_missing(aws("scheduler").get_schedule, Name=ttl_name(project))
    if schedule is None:
        return None
    text = schedule["ScheduleExpression"].removeprefix("at(").rstrip(")")
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cancel(aws: Aws, project: str) -> bool:
    """Take the schedule back; whether there was one."""
    return none_if_missing(aws("scheduler").delete_schedule, Name=ttl_name(project)) is not None
