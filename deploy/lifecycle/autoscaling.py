"""Autoscaling of the endpoint's instances: configure, remove, and restore it after a failed update."""

from functools import partial
from typing import Any

from aws.client import Aws, list_all, none_if_denied, none_if_missing
from aws.names import alarm_prefix, scalable_resource_id
from lifecycle.alarms import SCALE_FROM_ZERO, create_scale_from_zero_alarm
from lifecycle.settings import Settings

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


def configure(aws: Aws, project: str, settings: Settings) -> None:
    """Register the endpoint's variant with its limits and policies; idempotent."""
    scaler = aws("application-autoscaling")
    variant = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": scalable_resource_id(project),
        "ScalableDimension": DIMENSION,
    }
    scaler.register_scalable_target(**variant, MinCapacity=settings.min, MaxCapacity=settings.max)
    scaler.put_scaling_policy(
        PolicyName=alarm_prefix(project) + LOAD,
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=load_policy(project, settings),
        **variant,
    )
    if settings.kind == "async" and settings.min == 0:
        # Target tracking divides the queue by the number of instances, which gives no value for zero.
        step = {"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}
        policy = scaler.put_scaling_policy(
            PolicyName=alarm_prefix(project) + SCALE_FROM_ZERO,
            PolicyType="StepScaling",
            StepScalingPolicyConfiguration={
                "AdjustmentType": "ChangeInCapacity",
                "Cooldown": settings.cooldown,
                "StepAdjustments": [step],
            },
            **variant,
        )
        create_scale_from_zero_alarm(aws, project, policy["PolicyARN"])


def load_policy(project: str, settings: Settings) -> dict:
    """Target tracking of the invocations per minute and instance; async: of the queue per instance."""
    policy: dict[str, Any] = {
        "TargetValue": float(settings.target),
        "ScaleInCooldown": settings.cooldown,
        "ScaleOutCooldown": settings.cooldown,
    }
    if settings.kind != "async":
        predefined = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        return policy | {"PredefinedMetricSpecification": predefined}
    backlog = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": project}],
        "Statistic": "Average",
    }
    return policy | {"CustomizedMetricSpecification": backlog}


def snapshot(aws: Aws, project: str) -> list[tuple[str, dict]]:
    """The endpoint's autoscaling as API calls that recreate it; empty without autoscaling."""
    target = find_target(aws, project)
    if not target:
        return []
    variant = {key: target[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
    limits = {key: target[key] for key in ("MinCapacity", "MaxCapacity")}
    client = aws("application-autoscaling")
    list_policies = partial(list_all, client, "describe_scaling_policies", "ScalingPolicies", **variant)
    policies = none_if_denied(list_policies) or []
    keys = ["PolicyName", "PolicyType"]
    keys += ["TargetTrackingScalingPolicyConfiguration", "StepScalingPolicyConfiguration"]
    requests = [{key: policy[key] for key in keys if key in policy} for policy in policies]
    return [
        ("register_scalable_target", variant | limits),
        *(("put_scaling_policy", variant | request) for request in requests),
    ]


def restore(aws: Aws, calls: list[tuple[str, dict]]) -> None:
    """Recreate the autoscaling of a `snapshot`."""
    for operation, request in calls:
        getattr(aws("application-autoscaling"), operation)(**request)


def remove(aws: Aws, project: str) -> bool:
    """Stop scaling the endpoint, which deletes the policies, too; whether it was scaled."""
    response = none_if_missing(
        aws("application-autoscaling").deregister_scalable_target,
        ServiceNamespace="sagemaker",
        ResourceId=scalable_resource_id(project),
        ScalableDimension=DIMENSION,
    )
    return response is not None
