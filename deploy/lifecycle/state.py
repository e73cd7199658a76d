"""What exists on AWS: the project's endpoint, and everything else with the project's tag."""

from dataclasses import dataclass, field

from aws.client import Aws, list_all, none_if_missing
from aws.names import LIVE_TAG, PREVIOUS_TAG, PROJECT_TAG, VARIANT, is_content_name
from common import CommandError


@dataclass(frozen=True)
class State:
    """The project's endpoint; `endpoint` is DescribeEndpoint's response, None if there is no endpoint.

    `scaling` is autoscaling.snapshot's result, from which autoscaling can be restored.
    """

    endpoint: dict | None
    tags: dict[str, str]
    scaling: list[tuple[str, dict]] = field(default_factory=list)

    @property
    def status(self) -> str | None:
        """InService, Creating, Failed, ...; None without an endpoint."""
        return self.endpoint["EndpointStatus"] if self.endpoint else None

    @property
    def config(self) -> str | None:
        """The endpoint's current configuration; None without an endpoint."""
        return self.endpoint["EndpointConfigName"] if self.endpoint else None

    @property
    def live(self) -> str | None:
        """The configuration that last passed the smoke test."""
        return self.tags.get(LIVE_TAG)

    @property
    def previous(self) -> str | None:
        """The configuration that passed the smoke test before that one."""
        return self.tags.get(PREVIOUS_TAG)


def get_state(aws: Aws, project: str) -> State:
    """The project's endpoint. Raises CommandError if an endpoint of this name is somebody else's."""
    endpoint = none_if_missing(aws("sagemaker").describe_endpoint, EndpointName=project)
    if endpoint is None:
        return State(None, {})
    tags = get_tags(aws, endpoint["EndpointArn"])
    if tags.get(PROJECT_TAG) != project:
        text = f"the endpoint {project} was not created by this tool"
        raise CommandError(2, f"{text}: give your project another name")
    return State(endpoint, tags)


def get_tags(aws: Aws, arn: str) -> dict[str, str]:
    """A SageMaker resource's tags."""
    tags = list_all(aws("sagemaker"), "list_tags", "Tags", ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for tag in tags}


def list_endpoints(aws: Aws) -> list[str]:
    """The names of the endpoints in the account and Region that this tool created."""
    found = list_all(aws("sagemaker"), "list_endpoints", "Endpoints")
    names = {endpoint["EndpointName"]: endpoint["EndpointArn"] for endpoint in found}
    return sorted(name for name, arn in names.items() if get_tags(aws, arn).get(PROJECT_TAG) == name)


def list_configs(aws: Aws, project: str) -> list[dict]:
    """The project's configurations, oldest first (ListEndpointConfigs)."""
    return list_ours(aws, project, "EndpointConfig", "list_endpoint_configs")


def list_models(aws: Aws, project: str) -> list[dict]:
    """The project's models, oldest first (ListModels)."""
    return list_ours(aws, project, "Model", "list_models")


def list_ours(aws: Aws, project: str, kind: str, operation: str) -> list[dict]:
    """The resources whose name is one of the project's content names and that have its tag."""
    found = list_all(aws("sagemaker"), operation, f"{kind}s", NameContains=f"{project}-")
    named = [summary for summary in found if is_content_name(project, summary[f"{kind}Name"])]
    ours = [summary for summary in named if get_tags(aws, summary[f"{kind}Arn"]).get(PROJECT_TAG) == project]
    return sorted(ours, key=lambda summary: summary["CreationTime"])


def describe_config(aws: Aws, name: str | None) -> dict | None:
    """A configuration; None if it does not exist any more, or without a name."""
    if name is None:
        return None
    return none_if_missing(aws("sagemaker").describe_endpoint_config, EndpointConfigName=name)


def variant_of(config: dict) -> dict:
    """The only variant of our configurations."""
    return next(variant for variant in config["ProductionVariants"] if variant["VariantName"] == VARIANT)


def kind_of(config: dict) -> str:
    """real-time, serverless or async."""
    if "ServerlessConfig" in variant_of(config):
        return "serverless"
    return "async" if config.get("AsyncInferenceConfig") else "real-time"
