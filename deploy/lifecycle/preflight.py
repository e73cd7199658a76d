"""Checks before anything is created: the archive, the role, your permissions and the quota.

What AWS does not let you check is reported and skipped; what would certainly fail raises CommandError.
"""

import re
from collections.abc import Callable
from typing import Any

from aws.client import Aws, AwsError, as_command_error, is_denied, list_all, none_if_missing
from aws.names import role_name
from common import CommandError
from lifecycle.plan import Plan

QUOTAS = "https://{region}.console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"


def check(aws: Aws, plan: Plan, instances: int) -> list[str]:
    """Run all checks; returns a sentence for each that was denied.

    `instances` is the largest number of instances of the type that will run at the same time. Raises
    CommandError for the first problem.
    """
    check_archive(aws, plan)
    checks: dict[str, Callable[[], None]] = {
        "the role": lambda: check_role(aws, plan),
        "your permissions": lambda: check_caller(aws, plan),
    }
    if plan.settings.kind != "serverless":
        checks["the quota"] = lambda: check_quota(aws, plan.settings.instance, instances)
    skipped = []
    for what, run in checks.items():
        try:
            run()
        except AwsError as error:
            if not is_denied(error):
                raise
            skipped.append(f"{what} was not checked: {as_command_error(error)}")
    return skipped


def check_archive(aws: Aws, plan: Plan) -> None:
    """Raise CommandError if the bucket or the archive was deleted."""
    key = plan.archive.url.removeprefix(f"s3://{plan.archive.bucket}/")
    if none_if_missing(aws("s3").head_object, Bucket=plan.archive.bucket, Key=key) is None:
        text = f"{plan.archive.url} does not exist any more"
        raise CommandError(3, f"{text}: run `invoke package` to upload it again")


def check_role(aws: Aws, plan: Plan) -> None:
    """Raise CommandError if the role is missing, SageMaker may not assume it, or it lacks a permission."""
    settings, arn = plan.settings, f"arn:{aws.partition}:s3:::"
    actions = [("s3:GetObject", arn + plan.archive.url.removeprefix("s3://"))]
    if "dkr.ecr" in plan.model["PrimaryContainer"]["Image"]:
        actions.append(("ecr:GetAuthorizationToken", "*"))
    if settings.kind == "async":
        actions.append(("s3:PutObject", f"{arn}{plan.archive.bucket}/{plan.project}/async/out/answer"))
    if settings.capture != "off":
        actions.append(("s3:PutObject", f"{arn}{plan.archive.bucket}/{plan.project}/capture/answer"))
    if settings.guard:
        actions.append(("cloudwatch:DescribeAlarms", "*"))
    check_role_actions(aws, plan.project, plan.model["ExecutionRoleArn"], actions)


def check_role_actions(aws: Aws, project: str, arn: str, actions: list[tuple[str, str]]) -> None:
    """Raise CommandError if the role is missing, is not SageMaker's, or lacks one of (action, resource)."""
    ours = arn.endswith(f"/{role_name(project)}")
    role = none_if_missing(aws("iam").get_role, RoleName=arn.rpartition("/")[2])
    if role is None:
        advice = "`invoke role --create` creates it" if ours else "correct `role`, or leave it out"
        raise CommandError(2, f"there is no role {arn}: {advice}")
    if "sagemaker.amazonaws.com" not in str(role["Role"]["AssumeRolePolicyDocument"]):
        text = f"SageMaker may not assume {arn}"
        raise CommandError(2, f"{text}: its trust policy must name sagemaker.amazonaws.com")
    for action, resource in denied_actions(aws("iam"), arn, actions):
        advice = "`invoke role --create` fixes it" if ours else "`invoke role` prints what it needs"
        raise CommandError(3, f"the role {arn} lacks {action} on {resource}: {advice}")


def check_caller(aws: Aws, plan: Plan) -> None:
    """Raise CommandError if your own identity lacks a permission that deploying needs."""
    caller = aws.caller
    if ":assumed-role/" in caller:  # a session's ARN lacks the role's path, so ask IAM for the role's ARN
        name = caller.split("/")[1]
        caller = aws("iam").get_role(RoleName=name)["Role"]["Arn"]
    if caller.endswith(":root"):
        return
    here = f"arn:{aws.partition}:sagemaker:{aws.region}:{aws.account}"
    endpoint = f"{here}:endpoint/{plan.project}"
    operations = ("CreateEndpoint", "UpdateEndpoint", "DeleteEndpoint", "InvokeEndpoint")
    actions = [
        ("sagemaker:CreateModel", f"{here}:model/{plan.model['ModelName']}"),
        ("sagemaker:CreateEndpointConfig", f"{here}:endpoint-config/{plan.name}"),
        *((f"sagemaker:{operation}", endpoint) for operation in operations),
        ("sagemaker:AddTags", endpoint),
        ("iam:PassRole", plan.model["ExecutionRoleArn"]),
    ]
    for action, resource in denied_actions(aws("iam"), caller, actions):
        text = f"your AWS identity {aws.caller} lacks {action} on {resource}"
        raise CommandError(3, f"{text}: `invoke role` prints the policy that it needs")


def denied_actions(iam: Any, arn: str, actions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the (action, resource) pairs that IAM's policy simulator denies to an identity."""
    context = {
        "ContextKeyName": "iam:PassedToService",
        "ContextKeyValues": ["sagemaker.amazonaws.com"],
        "ContextKeyType": "string",
    }
    denied = []
    for resource in dict.fromkeys(resource for _, resource in actions):
        names = [action for action, on in actions if on == resource]
        response = iam.simulate_principal_policy(
            PolicySourceArn=arn, ActionNames=names, ResourceArns=[resource], ContextEntries=[context]
        )
        denied += [
            (result["EvalActionName"], resource)
            for result in response["EvaluationResults"]
            # The simulator also denies what depends on a condition whose value it was not given.
            if result["EvalDecision"] != "allowed" and not result.get("MissingContextValues")
        ]
    return [pair for pair in actions if pair in denied]


def check_quota(aws: Aws, instance: str, instances: int) -> None:
    """Raise CommandError if the account's quota for an instance type is below `instances`."""
    if not instances:
        return
    name = f"{instance} for endpoint usage"
    for quota in list_all(aws("service-quotas"), "list_service_quotas", "Quotas", ServiceCode="sagemaker"):
        if quota["QuotaName"] == name and quota["Value"] < instances:
            page = f"{QUOTAS.format(region=aws.region)}/{re.sub('[^A-Z0-9-]', '', quota['QuotaCode'])}"
            text = f"your quota of {name} is {quota['Value']:g}, and {instances} are needed at once"
            raise CommandError(3, f"{text}: request an increase at {page}")
