"""Names and tags of a project's resources on AWS, by which another machine finds them.

The endpoint has the project's name, so there is never a second one by accident. Models and configurations are
named by their content, which makes a deployment repeatable.
"""

import hashlib
import json
import re

from common import CommandError

OWNER = "fastai-sagemaker"
PROJECT_TAG = f"{OWNER}:project"  # on everything that takes tags: the project's name
LIVE_TAG = f"{OWNER}:live"  # on the endpoint: the configuration that last passed the smoke test
PREVIOUS_TAG = f"{OWNER}:previous"  # on the endpoint: the configuration that passed it before that one
KIND_TAG = f"{OWNER}:kind"
VARIANT = "AllTraffic"  # the name that the SageMaker SDK and console use, too
CONSOLES = {
    "aws": "{region}.console.aws.amazon.com",
    "aws-cn": "{region}.console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}
MAX_PROJECT_NAME = 40  # SageMaker takes names of at most 63 characters; content_name adds 20


def check_project(project: str) -> str:
    """The name itself. Raises CommandError if SageMaker would reject it."""
    if len(project) > MAX_PROJECT_NAME or not re.fullmatch("[a-z0-9](-*[a-z0-9])*", project):
        rule = f"at most {MAX_PROJECT_NAME} lower-case letters, digits and hyphens"
        text = f"a project's name on SageMaker has {rule}, not {project!r}"
        raise CommandError(2, f"{text}: change `project`")
    return project


def content_name(project: str, sha256: str, request: dict) -> str:
    """<project>-<archive's sha256>-<request's sha256>, shortened: equal requests have equal names."""
    text = json.dumps(request, sort_keys=True)
    return f"{project}-{sha256[:12]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def is_content_name(project: str, name: str) -> bool:
    """Whether a name has the form of the project's `content_name`."""
    return bool(re.fullmatch(re.escape(project) + "-[0-9a-f]{12}-[0-9a-f]{6}", name))


def role_name(project: str) -> str:
    """The execution role that `invoke role --create` creates."""
    return f"{OWNER}-{project}"


def ttl_name(project: str) -> str:
    """The schedule that deletes the endpoint, and the role that EventBridge Scheduler assumes for it."""
    return f"{OWNER}-{project}-ttl"


def image_name(project: str) -> str:
    """The ECR repository of `invoke image`, and the CodeBuild project that pushes to it."""
    return f"{OWNER}-{project}"


def build_role_name(project: str) -> str:
    """The role that CodeBuild assumes to build the image."""
    return f"{OWNER}-{project}-build"


def build_log_group(project: str) -> str:
    """The log group of CodeBuild."""
    return f"/aws/codebuild/{image_name(project)}"


def alarm_prefix(project: str) -> str:
    """The prefix of the names of the project's own alarms and scaling policies."""
    return f"{OWNER}-{project}:"


def scalable_resource_id(project: str) -> str:
    """Application Auto Scaling's ResourceId of the endpoint's variant."""
    return f"endpoint/{project}/variant/{VARIANT}"


def log_group(project: str) -> str:
    """The log group of the endpoint's containers."""
    return f"/aws/sagemaker/Endpoints/{project}"


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as a list of Key and Value, the form of most AWS requests."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def console_url(partition: str, region: str, project: str) -> str:
    """The address of the endpoint's page in the AWS console."""
    host = CONSOLES.get(partition, CONSOLES["aws"]).format(region=region)
    return f"https://{host}/sagemaker/home?region={region}#/endpoints/{project}"
