"""How many instances, by load; and the alarms that wake an endpoint or roll an update back."""

from argparse import Namespace
from functools import partial
from typing import Any

from aws import Aws, pages, unless_denied, unless_missing
from names import PROJECT, VARIANT, alarm_prefix, scaled, tag_list

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
LOAD, WAKE = "load", "wake"


def target(aws: Aws, project: str) -> dict | None:
    """The endpoint's autoscaling (DescribeScalableTargets), None if there is none."""
    found = pages(
        aws("application-autoscaling"),
        "describe_scalable_targets",
        "ScalableTargets",
        ServiceNamespace="sagemaker",
        ResourceIds=[scaled(project)],
        ScalableDimension=DIMENSION,
    )
    return found[0] if found else None


def arrange(aws: Aws, project: str, settings: Namespace) -> None:
    """Register the endpoint's variant with its limits and policies; again is the same."""
    scaler = aws("application-autoscaling")
    variant = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": scaled(project),
        "ScalableDimension": DIMENSION,
    }
    scaler.register_scalable_target(**variant, MinCapacity=settings.min, MaxCapacity=settings.max)
    policy = load_policy(project, settings)
    scaler.put_scaling_policy(
        PolicyName=alarm_prefix(project) + LOAD,
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=policy,
        **variant,
    )
    if settings.kind == "async" and settings.min == 0:
        step = {"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}
        made = scaler.put_scaling_policy(
            PolicyName=alarm_prefix(project) + WAKE,
            PolicyType="StepScaling",
            StepScalingPolicyConfiguration={
                "AdjustmentType": "ChangeInCapacity",
                "Cooldown": settings.cooldown,
                "StepAdjustments": [step],
            },
            **variant,
        )
        wake_alarm(aws, project, made["PolicyARN"])


def load_policy(project: str, settings: Namespace) -> dict:
    """Hold the invocations per instance and minute, or the pictures that wait per instance, at a target."""
    policy = {
        "TargetValue": float(settings.target),
        "ScaleInCooldown": settings.cooldown,
        "ScaleOutCooldown": settings.cooldown,
    }
    if settings.kind != "async":
        metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        return policy | {"PredefinedMetricSpecification": metric}
    metric = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": project}],
        "Statistic": "Average",
    }
    return policy | {"CustomizedMetricSpecification": metric}


def remember(aws: Aws, project: str) -> list[tuple[str, dict]]:
    """The endpoint's autoscaling as the calls that would make it anew; none where there is none."""
    found = target(aws, project)
    if not found:
        return []
    variant = {key: found[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
    limits = {key: found[key] for key in ("MinCapacity", "MaxCapacity")}
    client = aws("application-autoscaling")
    look = partial(pages, client, "describe_scaling_policies", "ScalingPolicies", **variant)
    policies = unless_denied(look) or []
    own = ("PolicyName", "PolicyType")
    rules = ("TargetTrackingScalingPolicyConfiguration", "StepScalingPolicyConfiguration")
    calls = [{key: one[key] for key in (*own, *rules) if key in one} for one in policies]
    return [
        ("register_scalable_target", variant | limits),
        *(("put_scaling_policy", variant | call) for call in calls),
    ]


def restore(aws: Aws, remembered: list[tuple[str, dict]]) -> None:
    """Scale the endpoint again as `remember` saw it."""
    for call, request in remembered:
        getattr(aws("application-autoscaling"), call)(**request)


def cancel(aws: Aws, project: str) -> bool:
    """Stop scaling the endpoint, policies included; whether it was scaled."""
    answer = unless_missing(
        aws("application-autoscaling").deregister_scalable_target,
        ServiceNamespace="sagemaker",
        ResourceId=scaled(project),
        ScalableDimension=DIMENSION,
    )
    return answer is not None


# --- alarms


def wake_alarm(aws: Aws, project: str, action: str) -> None:
    """An alarm that starts the first instance when pictures wait and there is none."""
    put_alarm(
        aws,
        project,
        WAKE,
        AlarmActions=[action],
        MetricName="HasBacklogWithoutCapacity",
        Dimensions=[{"Name": "EndpointName", "Value": project}],
        Statistic="Average",
        Threshold=1.0,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
    )


def guard(aws: Aws, project: str, latency: int) -> list[str]:
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
        Tags=tag_list({PROJECT: project}),
        **request,
    )
    return name


def alarms(aws: Aws, project: str) -> list[str]:
    """The names of the project's own alarms (those of target tracking are AWS's)."""
    found = pages(aws("cloudwatch"), "describe_alarms", "MetricAlarms", AlarmNamePrefix=alarm_prefix(project))
    return [one["AlarmName"] for one in found]


def remove_alarms(aws: Aws, names: list[str]) -> None:
    """Delete alarms; those that are gone do not matter, but would keep AWS from deleting the others."""
    for name in names:
        unless_missing(aws("cloudwatch").delete_alarms, AlarmNames=[name])


def rollout(settings: Namespace, names: list[str], count: int) -> dict:
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
            "MaximumExecutionTimeoutInSeconds": longest(settings),
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in names]},
    }


def longest(settings: Namespace) -> int:
    """Seconds after which SageMaker gives a guarded update up; AWS takes 600 to 28800."""
    return min(settings.startup + settings.download + 2 * settings.bake + 1800, 28800)
