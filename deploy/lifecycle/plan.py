"""The requests for a model and an endpoint configuration, named by their content."""

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws.client import Aws
from aws.names import KIND_TAG, PROJECT_TAG, VARIANT, content_name
from common import CommandError
from ecr.catalogue import gpu_ami, image_uri
from lifecycle.settings import ModelSettings, Settings

RAY_ENVIRONMENT = {
    "RAYSERVE_BACKEND_TIMEOUT": "55",  # less than the 60 s after which SageMaker gives up
}


@dataclass(frozen=True)
class Archive:
    """A model.tar.gz in S3, from the JSON that package/upload.py wrote."""

    url: str
    bucket: str
    sha256: str


@dataclass(frozen=True)
class Plan:
    """The model and the configuration of an endpoint, as requests without tags, and the tags."""

    project: str
    archive: Archive
    model: dict  # CreateModel's request
    config: dict  # CreateEndpointConfig's request
    tags: dict[str, str]
    settings: Settings

    @property
    def name(self) -> str:
        """The configuration's name, which stands for everything that this plan decides."""
        return self.config["EndpointConfigName"]


def read_archive(build: Path, aws: Aws) -> Archive:
    """A build folder's archive in S3. Raises CommandError unless it is in this Region and account."""
    packed, uploaded = build / "model.tar.gz", build / "uploaded.json"
    if not packed.is_file():
        raise CommandError(2, f"{packed} was not found: run `invoke package` first")
    try:
        facts = json.loads(uploaded.read_text())
        archive = Archive(facts["url"], facts["bucket"], facts["sha256"])
        region, account = facts["region"], facts["account"]
    except (OSError, ValueError, KeyError):
        raise CommandError(2, f"{uploaded} does not say where the archive is: run `invoke package`") from None
    with open(packed, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != archive.sha256:
            raise CommandError(2, f"{packed} is newer than what was uploaded: run `invoke package`")
    if (region, account) != (aws.region, aws.account):
        there, here = f"{region} of account {account}", f"{aws.region} of {aws.account}"
        raise CommandError(2, f"the archive is in {there}, and you are in {here}: run `invoke package`")
    return archive


def make_plan(aws: Aws, project: str, build: Path, archive: Archive, role: str, settings: Settings) -> Plan:
    """The requests for these settings. Raises CommandError for combinations that AWS would reject."""
    if settings.hosted_on:
        check_instance_type(aws, settings.hosted_on)
    image = image_uri(aws, settings.stack, build, settings.hosted_on)
    model = model_request(project, image, archive, role, settings)
    config = config_request(project, archive, model["ModelName"], settings)
    tags = {PROJECT_TAG: project, KIND_TAG: settings.kind} | settings.tags
    return Plan(project, archive, model, config, tags, settings)


def check_instance_type(aws: Aws, instance: str, shape: str = "ProductionVariantInstanceType") -> None:
    """Raise CommandError, with the nearest names, for an instance type that botocore does not know."""
    known = aws("sagemaker").meta.service_model.shape_for(shape).enum
    if instance not in known:
        near = difflib.get_close_matches(instance, known, 3) or ["ml.c7i.large", "ml.m5.large"]
        text = f"SageMaker has no instance type {instance}"
        raise CommandError(2, f"{text}: did you mean {' or '.join(near)}?")


def model_request(project: str, image: str, archive: Archive, role: str, settings: ModelSettings) -> dict:
    """CreateModel: an image, an archive, an environment, a role, and the network."""
    no_urls = {} if settings.urls else {"SERVE_URLS": "off"}
    ray = RAY_ENVIRONMENT if settings.stack == "ray" else {}
    request: dict[str, Any] = {
        "PrimaryContainer": {
            "Image": image,
            "ModelDataUrl": archive.url,
            "Environment": ray | no_urls | settings.environment,
        },
        "ExecutionRoleArn": role,
        "EnableNetworkIsolation": settings.isolation,
    }
    if settings.subnets:
        request["VpcConfig"] = {"Subnets": settings.subnets, "SecurityGroupIds": settings.security_groups}
    return {"ModelName": content_name(project, archive.sha256, request), **request}


def config_request(project: str, archive: Archive, model: str, settings: Settings) -> dict:
    """CreateEndpointConfig: one variant, on instances or serverless, and where responses are stored."""
    host = serverless_variant(settings) if settings.kind == "serverless" else instance_variant(settings)
    variant = {"VariantName": VARIANT, "ModelName": model, "InitialVariantWeight": 1.0, **host}
    request: dict[str, Any] = {"ProductionVariants": [variant]}
    data = f"s3://{archive.bucket}/{project}"
    key = {"KmsKeyId": settings.kms_key} if settings.kms_key else {}
    if settings.kind == "async":
        output = {"S3OutputPath": f"{data}/async/out", "S3FailurePath": f"{data}/async/failed", **key}
        client = {"MaxConcurrentInvocationsPerInstance": settings.concurrency}
        request["AsyncInferenceConfig"] = {"OutputConfig": output, "ClientConfig": client}
    if settings.capture != "off":
        request["DataCaptureConfig"] = capture_config(settings.capture, f"{data}/capture", key)
    request |= key
    return {"EndpointConfigName": content_name(project, archive.sha256, request), **request}


def instance_variant(settings: Settings) -> dict:
    """The variant's instances, and how long they may take to start."""
    ami = gpu_ami(settings.stack, settings.instance, settings.ami)
    return {
        "InstanceType": settings.instance,
        "InitialInstanceCount": settings.count,
        "ModelDataDownloadTimeoutInSeconds": settings.download,
        "ContainerStartupHealthCheckTimeoutInSeconds": settings.startup,
    } | ({"InferenceAmiVersion": ami} if ami else {})


def serverless_variant(settings: Settings) -> dict:
    """The variant without instances."""
    size = {"MemorySizeInMB": settings.memory, "MaxConcurrency": settings.concurrency}
    if settings.provisioned:
        size["ProvisionedConcurrency"] = settings.provisioned
    return {"ServerlessConfig": size}


def capture_config(which: str, prefix: str, key: dict) -> dict:
    """DataCaptureConfig: every response in S3, as JSON; the pictures only with `all`, which is large."""
    modes = ["Output"] if which == "outputs" else ["Input", "Output"]
    return {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": prefix,
        "CaptureOptions": [{"CaptureMode": mode} for mode in modes],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        **key,
    }
