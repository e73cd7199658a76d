"""CloudWatch alarms: those that roll an update back, and the one that scales from zero instances to one."""

from typing import Any

from aws.client import Aws, list_all, none_if_missing
from aws.names import PROJECT_TAG, VARIANT, alarm_prefix, tag_list
from lifecycle.settings import Settings

SCALE_FROM_ZERO = "scale-from-zero"


def create_scale_from_zero_alarm(aws: Aws, project: str, action: str) -> None:
    """Create the alarm that starts the first instance for queued requests; `action` is a policy's ARN."""
    put_alarm(
        aws,
        project,
        SCALE_FROM_ZERO,
        AlarmActions=[action],
        MetricName="HasBacklogWithoutCapacity",
        Dimensions=[{"Name": "EndpointName", "Value": project}],
        Statistic="Average",
        Threshold=1.0,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
    )


def create_guard_alarms(aws: Aws, project: str, latency: int) -> list[str]:
    """Create alarms on more than 5 % 5xx responses, and on a p99 over `latency` ms; returns their names."""
    common = {
        "Dimensions": [
            {"Name": "EndpointName", "Value": project},
            {"Name": "VariantName", "Value": VARIANT},
        ],
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",
    }
    errors = {"MetricName": "Invocation5XXErrors", "Statistic": "Average", "Threshold": 0.05}
    microseconds = latency * 1000.0  # ModelLatency's unit
    slow = {"MetricName": "ModelLatency", "ExtendedStatistic": "p99", "Threshold": microseconds}
    return [
        put_alarm(aws, project, "5xx", **errors, **common),
        put_alarm(aws, project, "latency", **slow, **common),
    ]


def put_alarm(aws: Aws, project: str, what: str, **request: Any) -> str:
    """Create or update one of the project's alarms, on two minutes of data; returns its name."""
    name = alarm_prefix(project) + what
    aws("cloudwatch").put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        Period=60,
        EvaluationPeriods=2,
        Tags=tag_list({PROJECT_TAG: project}),
        **request,
    )
    return name


def list_alarms(aws: Aws, project: str) -> list[str]:
    """The names of the project's own alarms, without those that target tracking creates."""
    prefix = alarm_prefix(project)
    alarms = list_all(aws("cloudwatch"), "describe_alarms", "MetricAlarms", AlarmNamePrefix=prefix)
    return [alarm["AlarmName"] for alarm in alarms]


def delete_alarms(aws: Aws, names: list[str]) -> None:
    """Delete alarms. One request each: DeleteAlarms deletes none if one of several does not exist."""
    for name in names:
        none_if_missing(aws("cloudwatch").delete_alarms, AlarmNames=[name])


def deployment_config(settings: Settings, names: list[str], count: int) -> dict:
    """UpdateEndpoint's DeploymentConfig: blue/green, rolled back by the alarms of these names.

    With `count` >= 2 instances, one instance is the canary; AWS allows at most half of them. One instance is
    replaced all at once.
    """
    traffic: dict[str, Any] = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": settings.bake}
    if count > 1:
        traffic |= {"Type": "CANARY", "CanarySize": {"Type": "INSTANCE_COUNT", "Value": 1}}
    return {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": traffic,
            "TerminationWaitInSeconds": 60,
            "MaximumExecutionTimeoutInSeconds": update_timeout(settings),
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in names]},
    }


def update_timeout(settings: Settings) -> int:
    """Seconds after which SageMaker rolls a guarded update back; AWS allows 600 to 28800."""
    return min(settings.startup + settings.download + 2 * settings.bake + 1800, 28800)
