"""Before anything is created: the archive, the role, your permissions and the quota, where AWS lets us ask.

What may not be asked is said and passed over; what would certainly fail stops here, with nothing made.
"""

import re
from typing import Any

from aws.client import Aws, AwsError, as_command_error, is_denied, list_all, none_if_missing
from aws.names import role_name
from common import CommandError
from lifecycle.plan import Plan

QUOTAS = "https://{region}.console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"


def check(aws: Aws, plan: Plan, extra: int) -> list[str]:
    """Everything in turn; returns what could not be checked. `extra` instances will be needed at most.

    Raises Stop for the first thing that would fail.
    """
    check_archive(aws, plan)
    passed_over = []
    for what, look in (
        ("the role", lambda: check_role(aws, plan)),
        ("your permissions", lambda: check_caller(aws, plan)),
        ("the quota", lambda: check_quota(aws, plan.settings.instance, extra)),
    ):
        if what == "the quota" and plan.settings.kind == "serverless":
            continue
        try:
            look()
        except AwsError as error:
            if not is_denied(error):
                raise
            passed_over.append(f"{what} was not checked: {as_command_error(error)}")
    return passed_over


def check_archive(aws: Aws, plan: Plan) -> None:
    """Raises Stop when the bucket or the archive was deleted."""
    key = plan.archive.url.removeprefix(f"s3://{plan.archive.bucket}/")
    if none_if_missing(aws("s3").head_object, Bucket=plan.archive.bucket, Key=key) is None:
        raise CommandError(
            3, f"{plan.archive.url} is no longer there: run `invoke package` to upload it again"
        )


def check_role(aws: Aws, plan: Plan) -> None:
    """Raises Stop when the role is missing, SageMaker may not use it, or it lacks what the endpoint needs."""
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
    """Raises Stop when the role is missing, is not SageMaker's, or may not do one of these on a resource."""
    ours = arn.endswith(f"/{role_name(project)}")
    role = none_if_missing(aws("iam").get_role, RoleName=arn.rpartition("/")[2])
    if role is None:
        way = "`invoke role --create` makes it" if ours else "correct `role`, or leave it out"
        raise CommandError(2, f"there is no role {arn}: {way}")
    if "sagemaker.amazonaws.com" not in str(role["Role"]["AssumeRolePolicyDocument"]):
        raise CommandError(
            2, f"SageMaker may not use {arn}: its trust policy must name sagemaker.amazonaws.com"
        )
    for action, resource in denied_actions(aws("iam"), arn, actions):
        again = "`invoke role --create` mends it" if ours else "`invoke role` prints what it needs"
        raise CommandError(3, f"the role {arn} lacks {action} on {resource}: {again}")


def check_caller(aws: Aws, plan: Plan) -> None:
    """Raises Stop when your own identity lacks a permission that deploying needs."""
    caller = aws.caller
    if ":assumed-role/" in caller:  # a session of a role; its path is lost in the session's name
        name = caller.split("/")[1]
        caller = aws("iam").get_role(RoleName=name)["Role"]["Arn"]
    if caller.endswith(":root"):
        return
    here = f"arn:{aws.partition}:sagemaker:{aws.region}:{aws.account}"
    endpoint = f"{here}:endpoint/{plan.project}"
    verbs = ("CreateEndpoint", "UpdateEndpoint", "DeleteEndpoint", "InvokeEndpoint")
    actions = [
        ("sagemaker:CreateModel", f"{here}:model/{plan.model['ModelName']}"),
        ("sagemaker:CreateEndpointConfig", f"{here}:endpoint-config/{plan.name}"),
        *((f"sagemaker:{verb}", endpoint) for verb in verbs),
        ("sagemaker:AddTags", endpoint),
        ("iam:PassRole", plan.model["ExecutionRoleArn"]),
    ]
    for action, resource in denied_actions(aws("iam"), caller, actions):
        text = f"your AWS identity {aws.caller} lacks {action} on {resource}"
        raise CommandError(3, f"{text}: `invoke role` prints the policy that it needs")


def denied_actions(iam: Any, arn: str, actions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Which of these (action, resource), IAM's simulator says, an identity may not do."""
    context = {
        "ContextKeyName": "iam:PassedToService",
        "ContextKeyValues": ["sagemaker.amazonaws.com"],
        "ContextKeyType": "string",
    }
    refused = []
    for resource in dict.fromkeys(resource for _, resource in actions):
        names = [action for action, on in actions if on == resource]
        answer = iam.simulate_principal_policy(
            PolicySourceArn=arn, ActionNames=names, ResourceArns=[resource], ContextEntries=[context]
        )
        refused += [
            (result["EvalActionName"], resource)
            for result in answer["EvaluationResults"]
            # With a condition that we cannot know of, the simulator's no is no answer.
            if result["EvalDecision"] != "allowed" and not result.get("MissingContextValues")
        ]
    return [pair for pair in actions if pair in refused]


def check_quota(aws: Aws, instance: str, extra: int) -> None:
    """Raises Stop when the account's quota for this instance type is below what will be used at once."""
    if not extra:
        return
    wanted = f"{instance} for endpoint usage"
    for quota in list_all(aws("service-quotas"), "list_service_quotas", "Quotas", ServiceCode="sagemaker"):
        if quota["QuotaName"] == wanted and quota["Value"] < extra:
            where = QUOTAS.format(region=aws.region)
            text = f"your quota of {wanted} is {quota['Value']:g}, and {extra} are needed at once"
            raise CommandError(
                3, f"{text}: ask for more at {where}/{re.sub('[^A-Z0-9-]', '', quota['QuotaCode'])}"
            )
