"""What should exist: the requests for a model and a configuration, named by their content."""

import difflib
import hashlib
import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from aws.client import Aws
from aws.names import KIND_TAG, PROJECT_TAG, VARIANT, content_name
from common import CommandError
from ecr.catalogue import gpu_ami, image_uri

RAY_ENVIRONMENT = {
    "RAYSERVE_BACKEND_TIMEOUT": "55",  # SageMaker gives up at 60 s
    "MALLOC_MMAP_THRESHOLD_": "4194304",  # gives large pictures' memory back, as serve/Dockerfile says
}


@dataclass(frozen=True)
class Archive:
    """A model.tar.gz in S3, as package/upload.py wrote it down."""

    url: str
    bucket: str
    sha256: str


@dataclass(frozen=True)
class Plan:
    """The three things that an endpoint is made of, and what is said of each in its tags."""

    project: str
    archive: Archive
    model: dict  # CreateModel's request, without tags, as are those below
    config: dict  # CreateEndpointConfig's
    tags: dict[str, str]
    settings: Namespace

    @property
    def name(self) -> str:
        """The configuration's, which names everything that this plan decides."""
        return self.config["EndpointConfigName"]


def read_archive(build: Path, aws: Aws) -> Archive:
    """Where the archive in `build` lies in S3. Raises Stop unless it was uploaded from there to here."""
    packed, uploaded = build / "model.tar.gz", build / "uploaded.json"
    if not packed.is_file():
        raise CommandError(2, f"there is no {packed}: run `invoke package` first")
    try:
        facts = json.loads(uploaded.read_text())
        archive, place = Archive(facts["url"], facts["bucket"], facts["sha256"]), facts["region"]
        account = facts["account"]
    except (OSError, ValueError, KeyError):
        raise CommandError(2, f"{uploaded} does not say where the archive is: run `invoke package`") from None
    with open(packed, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != archive.sha256:
            raise CommandError(2, f"{packed} is newer than what was uploaded: run `invoke package`")
    if (place, account) != (aws.region, aws.account):
        there, here = f"{place} of account {account}", f"{aws.region} of {aws.account}"
        raise CommandError(2, f"the archive is in {there}, and you are in {here}: run `invoke package`")
    return archive


def make_plan(aws: Aws, project: str, archive: Archive, role: str, settings: Namespace) -> Plan:
    """The requests for these settings. Raises Stop for what does not go together."""
    if settings.kind != "serverless":
        check_instance_type(aws, settings.instance)
    model = model_request(aws, project, archive, role, settings)
    config = config_request(project, archive, model["ModelName"], settings)
    tags = {PROJECT_TAG: project, KIND_TAG: settings.kind} | settings.tags
    return Plan(project, archive, model, config, tags, settings)


def check_instance_type(aws: Aws, instance: str, shape: str = "ProductionVariantInstanceType") -> None:
    """Raises Stop, with the nearest names, for an instance type that botocore does not know."""
    known = aws("sagemaker").meta.service_model.shape_for(shape).enum
    if instance not in known:
        near = difflib.get_close_matches(instance, known, 3) or ["ml.c7i.large", "ml.m5.large"]
        raise CommandError(2, f"SageMaker has no instance type {instance}: did you mean {' or '.join(near)}?")


def model_request(aws: Aws, project: str, archive: Archive, role: str, settings: Namespace) -> dict:
    """CreateModel: an image, an archive, an environment, a role, and the network that it may see."""
    closed = {} if settings.urls else {"SERVE_URLS": "off"}
    ray = RAY_ENVIRONMENT if settings.stack == "ray" else {}
    request = {
        "PrimaryContainer": {
            "Image": image_uri(aws, settings),
            "ModelDataUrl": archive.url,
            "Environment": ray | closed | settings.environment,
        },
        "ExecutionRoleArn": role,
        "EnableNetworkIsolation": settings.isolation,
    }
    if settings.subnets:
        request["VpcConfig"] = {"Subnets": settings.subnets, "SecurityGroupIds": settings.security_groups}
    return {"ModelName": content_name(project, archive.sha256, request), **request}


def config_request(project: str, archive: Archive, model: str, settings: Namespace) -> dict:
    """CreateEndpointConfig: one variant, on instances or serverless, and where answers are kept."""
    where = serverless_variant(settings) if settings.kind == "serverless" else instance_variant(settings)
    variant = {"VariantName": VARIANT, "ModelName": model, "InitialVariantWeight": 1.0, **where}
    request = {"ProductionVariants": [variant]}
    data = f"s3://{archive.bucket}/{project}"
    key = {"KmsKeyId": settings.kms_key} if settings.kms_key else {}
    if settings.kind == "async":
        places = {"S3OutputPath": f"{data}/async/out", "S3FailurePath": f"{data}/async/failed", **key}
        at_once = {"MaxConcurrentInvocationsPerInstance": settings.concurrency}
        request["AsyncInferenceConfig"] = {"OutputConfig": places, "ClientConfig": at_once}
    if settings.capture != "off":
        request["DataCaptureConfig"] = capture_config(settings.capture, f"{data}/capture", key)
    request |= key
    return {"EndpointConfigName": content_name(project, archive.sha256, request), **request}


def instance_variant(settings: Namespace) -> dict:
    """The variant's instances and how long they may take to start."""
    ami = gpu_ami(settings.stack, settings.instance, settings.ami)
    return {
        "InstanceType": settings.instance,
        "InitialInstanceCount": settings.count,
        "ModelDataDownloadTimeoutInSeconds": settings.download,
        "ContainerStartupHealthCheckTimeoutInSeconds": settings.startup,
    } | ({"InferenceAmiVersion": ami} if ami else {})


def serverless_variant(settings: Namespace) -> dict:
    """The variant without instances."""
    size = {"MemorySizeInMB": settings.memory, "MaxConcurrency": settings.concurrency}
    if settings.provisioned:
        size["ProvisionedConcurrency"] = settings.provisioned
    return {"ServerlessConfig": size}


def capture_config(which: str, place: str, key: dict) -> dict:
    """Every answer in S3, as JSON; pictures only with `all`, for they are kept whole."""
    modes = ["Output"] if which == "outputs" else ["Input", "Output"]
    return {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": place,
        "CaptureOptions": [{"CaptureMode": mode} for mode in modes],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        **key,
    }
