"""How many instances, by load; and the alarms that wake an endpoint or roll an update back."""

from argparse import Namespace
from functools import partial

from aws.client import Aws, list_all, none_if_denied, none_if_missing
from aws.names import alarm_prefix, scalable_resource_id
from lifecycle.alarms import SCALE_FROM_ZERO, create_scale_from_zero_alarm

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
LOAD = "load"


def find_target(aws: Aws, project: str) -> dict | None:
    """The endpoint's autoscaling (DescribeScalableTargets), None if there is none."""
    found = list_all(
        aws("application-autoscaling"),
        "describe_scalable_targets",
        "ScalableTargets",
        ServiceNamespace="sagemaker",
        ResourceIds=[scalable_resource_id(project)],
        ScalableDimension=DIMENSION,
    )
    return found[0] if found else None


def configure(aws: Aws, project: str, settings: Namespace) -> None:
    """Register the endpoint's variant with its limits and policies; again is the same."""
    scaler = aws("application-autoscaling")
    variant = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": scalable_resource_id(project),
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
            PolicyName=alarm_prefix(project) + SCALE_FROM_ZERO,
            PolicyType="StepScaling",
            StepScalingPolicyConfiguration={
                "AdjustmentType": "ChangeInCapacity",
                "Cooldown": settings.cooldown,
                "StepAdjustments": [step],
            },
            **variant,
        )
        create_scale_from_zero_alarm(aws, project, made["PolicyARN"])


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


def snapshot(aws: Aws, project: str) -> list[tuple[str, dict]]:
    """The endpoint's autoscaling as the calls that would make it anew; none where there is none."""
    found = find_target(aws, project)
    if not found:
        return []
    variant = {key: found[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
    limits = {key: found[key] for key in ("MinCapacity", "MaxCapacity")}
    client = aws("application-autoscaling")
    look = partial(list_all, client, "describe_scaling_policies", "ScalingPolicies", **variant)
    policies = none_if_denied(look) or []
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


def remove(aws: Aws, project: str) -> bool:
    """Stop scaling the endpoint, policies included; whether it was scaled."""
    answer = none_if_missing(
        aws("application-autoscaling").deregister_scalable_target,
        ServiceNamespace="sagemaker",
        ResourceId=scalable_resource_id(project),
        ScalableDimension=DIMENSION,
    )
    return answer is not None
