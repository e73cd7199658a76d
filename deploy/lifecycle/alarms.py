"""CloudWatch alarms: those that roll an update back, and the one that starts the first instance."""

from argparse import Namespace
from typing import Any

from aws.client import Aws, list_all, none_if_missing
from aws.names import PROJECT_TAG, VARIANT, alarm_prefix, tag_list

SCALE_FROM_ZERO = "scale-from-zero"


def create_scale_from_zero_alarm(aws: Aws, project: str, action: str) -> None:
    """An alarm that starts the first instance when pictures wait and there is none."""
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
    """Alarms on more than 5 % of answers being 5xx, and on p99 over `latency` ms; returns their names."""
    common = {
        "Dimensions": [
            {"Name": "EndpointName", "Value": project},
            {"Name": "VariantName", "Value": VARIANT},
        ],
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",
    }
    errors = {"MetricName": "Invocation5XXErrors", "Statistic": "Average", "Threshold": 0.05}
    slow = {"MetricName": "ModelLatency", "ExtendedStatistic": "p99", "Threshold": latency * 1000.0}  # us
    return [
        put_alarm(aws, project, "5xx", **errors, **common),
        put_alarm(aws, project, "latency", **slow, **common),
    ]


def put_alarm(aws: Aws, project: str, what: str, **request: Any) -> str:
    """Make or change one of the project's alarms, over two minutes; returns its name."""
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
    """The names of the project's own alarms (those of target tracking are AWS's)."""
    found = list_all(
        aws("cloudwatch"), "describe_alarms", "MetricAlarms", AlarmNamePrefix=alarm_prefix(project)
    )
    return [one["AlarmName"] for one in found]


def delete_alarms(aws: Aws, names: list[str]) -> None:
    """Delete alarms; those that are gone do not matter, but would keep AWS from deleting the others."""
    for name in names:
        none_if_missing(aws("cloudwatch").delete_alarms, AlarmNames=[name])


def deployment_config(settings: Namespace, names: list[str], count: int) -> dict:
    """UpdateEndpoint's DeploymentConfig: all at once on one instance, one first where `count` run, from two.

    AWS takes a canary of at most half of the instances.
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


def update_timeout(settings: Namespace) -> int:
    """Seconds after which SageMaker gives a guarded update up; AWS takes 600 to 28800."""
    return min(settings.startup + settings.download + 2 * settings.bake + 1800, 28800)
