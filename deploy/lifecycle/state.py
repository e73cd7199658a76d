"""What exists: the endpoint as AWS describes it, and everything else that bears the project's tag."""

from dataclasses import dataclass, field

from aws.client import Aws, list_all, none_if_missing
from aws.names import LIVE_TAG, PREVIOUS_TAG, PROJECT_TAG, VARIANT, is_content_name
from common import CommandError


@dataclass(frozen=True)
class State:
    """The project's endpoint; `endpoint` is DescribeEndpoint's answer, None when there is none.

    `scaling` is what scaling.remember saw, for whoever may have to bring it back.
    """

    endpoint: dict | None
    tags: dict[str, str]
    scaling: list = field(default_factory=list)

    @property
    def status(self) -> str | None:
        """InService, Creating, Failed, ...; None when there is no endpoint."""
        return self.endpoint and self.endpoint["EndpointStatus"]

    @property
    def config(self) -> str | None:
        """The configuration that the endpoint has now."""
        return self.endpoint and self.endpoint["EndpointConfigName"]

    @property
    def live(self) -> str | None:
        """The configuration that last passed the gate."""
        return self.tags.get(LIVE_TAG)

    @property
    def previous(self) -> str | None:
        """The configuration that passed the gate before that one."""
        return self.tags.get(PREVIOUS_TAG)


def get_state(aws: Aws, project: str) -> State:
    """The project's endpoint. Raises Stop when somebody else's has the name."""
    endpoint = none_if_missing(aws("sagemaker").describe_endpoint, EndpointName=project)
    if endpoint is None:
        return State(None, {})
    tags = get_tags(aws, endpoint["EndpointArn"])
    if tags.get(PROJECT_TAG) != project:
        raise CommandError(
            2, f"the endpoint {project} was not made by this tool: give your project another name"
        )
    return State(endpoint, tags)


def get_tags(aws: Aws, arn: str) -> dict[str, str]:
    """A SageMaker resource's tags."""
    return {
        tag["Key"]: tag["Value"] for tag in list_all(aws("sagemaker"), "list_tags", "Tags", ResourceArn=arn)
    }


def list_endpoints(aws: Aws) -> dict[str, dict[str, str]]:
    """Every endpoint in the account and Region that this tool made, with its tags."""
    found = list_all(aws("sagemaker"), "list_endpoints", "Endpoints")
    tagged = {one["EndpointName"]: get_tags(aws, one["EndpointArn"]) for one in found}
    return {name: tags for name, tags in tagged.items() if tags.get(PROJECT_TAG) == name}


def list_configs(aws: Aws, project: str) -> list[dict]:
    """The project's configurations, oldest first (ListEndpointConfigs)."""
    return list_ours(aws, project, "EndpointConfig", "list_endpoint_configs")


def list_models(aws: Aws, project: str) -> list[dict]:
    """The project's models, oldest first (ListModels)."""
    return list_ours(aws, project, "Model", "list_models")


def list_ours(aws: Aws, project: str, kind: str, operation: str) -> list[dict]:
    """What is listed under one of the project's content names and bears its tag."""
    found = list_all(aws("sagemaker"), operation, f"{kind}s", NameContains=f"{project}-")
    named = [one for one in found if is_content_name(project, one[f"{kind}Name"])]
    tagged = [one for one in named if get_tags(aws, one[f"{kind}Arn"]).get(PROJECT_TAG) == project]
    return sorted(tagged, key=lambda one: one["CreationTime"])


def describe_config(aws: Aws, name: str) -> dict | None:
    """A configuration, None when it is gone."""
    return none_if_missing(aws("sagemaker").describe_endpoint_config, EndpointConfigName=name)


def variant_of(config: dict) -> dict:
    """The only variant that our configurations have."""
    return next(one for one in config["ProductionVariants"] if one["VariantName"] == VARIANT)


def kind_of(config: dict) -> str:
    """real-time, serverless or async."""
    if "ServerlessConfig" in variant_of(config):
        return "serverless"
    return "async" if config.get("AsyncInferenceConfig") else "real-time"
