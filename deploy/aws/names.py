"""What everything of a project is called on AWS, and how it is known again from another machine.

The endpoint has the project's name, so there is never a second one by accident. Models and configurations are
named by their content, which is what makes a deployment repeatable.
"""

import hashlib
import json
import re

from common import CommandError

OWNER = "fastai-sagemaker"
PROJECT_TAG = f"{OWNER}:project"  # on everything that takes tags: the project's name
LIVE_TAG = f"{OWNER}:live"  # on the endpoint: the configuration that last answered a picture rightly
PREVIOUS_TAG = f"{OWNER}:previous"  # on the endpoint: the one that did so before
KIND_TAG = f"{OWNER}:kind"
VARIANT = "AllTraffic"
CONSOLES = {
    "aws": "{region}.console.aws.amazon.com",
    "aws-cn": "{region}.console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}
MAX_PROJECT_NAME = 40  # characters of a project's name, so that the longest name made from it has at most 63


def check_project(project: str) -> str:
    """The name itself. Raises Stop when SageMaker would refuse it."""
    if len(project) > MAX_PROJECT_NAME or not re.fullmatch("[a-z0-9](-*[a-z0-9])*", project):
        rule = f"small letters, digits and dashes, at most {MAX_PROJECT_NAME}"
        raise CommandError(
            2, f"a project on SageMaker is called by {rule}, not {project!r}: change `project`"
        )
    return project


def content_name(project: str, sha256: str, request: dict) -> str:
    """<project>-<archive's sha256>-<request's sha256>, shortened: equal requests have equal names."""
    text = json.dumps(request, sort_keys=True)
    return f"{project}-{sha256[:12]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def is_content_name(project: str, name: str) -> bool:
    """Whether `content_name` made this one for the project."""
    return bool(re.fullmatch(re.escape(project) + "-[0-9a-f]{12}-[0-9a-f]{6}", name))


def role_name(project: str) -> str:
    """The execution role that `invoke role --create` makes."""
    return f"{OWNER}-{project}"


def ttl_name(project: str) -> str:
    """The schedule that ends the endpoint, and the role that the scheduler takes on for it."""
    return f"{OWNER}-{project}-ttl"


def image_name(project: str) -> str:
    """The ECR repository of `invoke image`, and the CodeBuild project that fills it."""
    return f"{OWNER}-{project}"


def build_role_name(project: str) -> str:
    """The role that CodeBuild takes on to make the image."""
    return f"{OWNER}-{project}-build"


def build_log_group(project: str) -> str:
    """Where CodeBuild writes."""
    return f"/aws/codebuild/{image_name(project)}"


def alarm_prefix(project: str) -> str:
    """How the project's own alarms begin."""
    return f"{OWNER}-{project}:"


def scalable_resource_id(project: str) -> str:
    """The endpoint's variant, as Application Auto Scaling calls it."""
    return f"endpoint/{project}/variant/{VARIANT}"


def log_group(project: str) -> str:
    """Where the endpoint's containers write."""
    return f"/aws/sagemaker/Endpoints/{project}"


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as most of AWS takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def console_url(partition: str, region: str, project: str) -> str:
    """The endpoint's page in AWS's console."""
    host = CONSOLES.get(partition, CONSOLES["aws"]).format(region=region)
    return f"https://{host}/sagemaker/home?region={region}#/endpoints/{project}"
