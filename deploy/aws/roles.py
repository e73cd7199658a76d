"""IAM roles: create, find and delete them, and check that they are this project's."""

import contextlib
import json
from pathlib import Path

from aws.client import Aws, AwsError, as_command_error, is_denied, none_if_missing
from aws.names import PROJECT_TAG, role_name, tag_list
from common import CommandError

METADATA = Path("/opt/ml/metadata/resource-metadata.json")  # in SageMaker Studio and notebooks
INLINE = "fastai-sagemaker"  # the name of each role's only policy


def create_role(aws: Aws, project: str, name: str, documents: dict) -> str:
    """Create or update a role; returns its ARN. Raises CommandError if it is not this project's."""
    iam, trust = aws("iam"), json.dumps(documents["trust"])
    role = none_if_missing(iam.get_role, RoleName=name)
    if role is None:
        request = {"RoleName": name, "AssumeRolePolicyDocument": trust}
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):  # a request that boto3 retried
            iam.create_role(**request, Tags=tag_list({PROJECT_TAG: project}))
        role = iam.get_role(RoleName=name)
    check_role_is_ours(role["Role"], project)
    iam.update_assume_role_policy(RoleName=name, PolicyDocument=trust)
    iam.put_role_policy(RoleName=name, PolicyName=INLINE, PolicyDocument=json.dumps(documents["policy"]))
    return role["Role"]["Arn"]


def remove_role(aws: Aws, project: str, name: str) -> bool:
    """Delete a role; whether there was one. Raises CommandError if it is not this project's."""
    found = none_if_missing(aws("iam").get_role, RoleName=name)
    if found is None:
        return False
    check_role_is_ours(found["Role"], project)
    none_if_missing(aws("iam").delete_role_policy, RoleName=name, PolicyName=INLINE)
    none_if_missing(aws("iam").delete_role, RoleName=name)
    return True


def check_role_is_ours(role: dict, project: str) -> None:
    """Raise CommandError unless the role has the project's tag."""
    if {"Key": PROJECT_TAG, "Value": project} not in role.get("Tags", []):
        raise CommandError(
            2, f"the role {role['RoleName']} was not created by this tool: rename or delete it"
        )


# --- the role of a deployment


def find_role(aws: Aws, given: str | None, project: str, metadata: Path = METADATA) -> str:
    """The execution role's ARN: the one given, the notebook's own, or that of `invoke role --create`.

    Raises CommandError if there is none.
    """
    if given:
        return given if given.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account}:role/{given}"
    if attached := notebook_role(aws, metadata):
        return attached
    try:
        found = none_if_missing(aws("iam").get_role, RoleName=role_name(project))
    except AwsError as error:
        if not is_denied(error):
            raise
        raise CommandError(3, f"{as_command_error(error)}; or give the role's ARN as `role`") from None
    if found is None:
        text = "there is no execution role"
        raise CommandError(2, f"{text}: `invoke role --create` creates one, or give your own as `role`")
    return found["Role"]["Arn"]


def notebook_role(aws: Aws, metadata: Path) -> str | None:
    """The role of the SageMaker notebook or Studio space in which this runs; None elsewhere."""
    try:
        facts = json.loads(metadata.read_text())
    except (OSError, ValueError):
        return None
    if "ExecutionRoleArn" in facts:
        return facts["ExecutionRoleArn"]
    sagemaker = aws("sagemaker")
    if "DomainId" not in facts:
        return sagemaker.describe_notebook_instance(NotebookInstanceName=facts["ResourceName"])["RoleArn"]
    domain = {"DomainId": facts["DomainId"]}
    if "UserProfileName" in facts:
        profile = sagemaker.describe_user_profile(**domain, UserProfileName=facts["UserProfileName"])
        if role := profile.get("UserSettings", {}).get("ExecutionRole"):
            return role
    return sagemaker.describe_domain(**domain)["DefaultUserSettings"]["ExecutionRole"]
