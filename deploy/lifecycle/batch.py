"""The verb `transform`: predictions for every picture under an S3 prefix, without an endpoint."""

from datetime import UTC, datetime
from pathlib import Path

from aws.client import Aws, AwsError, is_denied, retry_until_consistent
from aws.names import PROJECT_TAG, tag_list
from aws.pricing import estimate_price
from aws.roles import find_role
from aws.wait import STEPS, wait_until
from common import CommandError
from ecr.catalogue import TABLE, image_uri, is_gpu
from lifecycle import preflight, remove
from lifecycle.apply import create_if_missing
from lifecycle.diagnose import explain
from lifecycle.plan import check_instance_type, model_request, read_archive
from lifecycle.settings import BatchSettings

CONTENT_TYPE = "application/x-image"
LOG_GROUP = "/aws/sagemaker/TransformJobs"


def run(aws: Aws, project: str, build: Path, settings: BatchSettings) -> int:
    """Start the job, or find the one that is running, and wait until it ends. Raises CommandError."""
    check_instance_type(aws, settings.instance, "TransformInstanceType")
    check_source(aws, settings)
    name = find_running(aws, project, settings) or start(aws, project, build, settings)
    job = wait_until_ended(aws, name)
    if job["TransformJobStatus"] != "Completed":
        reason = f"{job['TransformJobStatus']}: {job.get('FailureReason') or 'AWS gives no reason'}"
        text = explain(aws, LOG_GROUP, reason, job["CreationTime"], name)
        raise CommandError(1, f"the transform {name} ended as {text}")
    print(f"done: the answers are under {settings.to}, one .out file per picture")
    return 0


def wait_until_ended(aws: Aws, name: str) -> dict:
    """DescribeTransformJob's response when the job has ended. Raises CommandError if there is no such job."""
    job = wait_until(
        f"transform {name}",
        lambda: aws("sagemaker").describe_transform_job(TransformJobName=name),
        lambda found, _: found is None or found["TransformJobStatus"] not in remove.RUNNING_STATES,
        lambda found: STEPS.get(found["TransformJobStatus"], found["TransformJobStatus"]),
    )
    if job is None:
        raise CommandError(3, f"AWS no longer knows the transform {name}: run the command again")
    return job


def check_source(aws: Aws, settings: BatchSettings) -> None:
    """Raise CommandError if there is nothing under the source prefix; note an empty object."""
    bucket, _, prefix = settings.source.removeprefix("s3://").partition("/")
    try:
        page = aws("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
    except AwsError as error:
        if not is_denied(error):  # the role may be allowed to read what you are not
            raise
        return
    if not page.get("Contents"):
        raise CommandError(2, f"there is nothing under {settings.source}")
    if empty := [entry["Key"] for entry in page["Contents"] if not entry["Size"]]:
        print(f"note: s3://{bucket}/{empty[0]} is empty, and will be sent as a picture like the others")


def check_role(aws: Aws, project: str, settings: BatchSettings, role: str) -> None:
    """Raise CommandError if the role may not read the source or write the target; skipped if denied."""
    s3 = f"arn:{aws.partition}:s3:::"
    source = settings.source.removeprefix("s3://")
    target = settings.to.removeprefix("s3://").rstrip("/")
    bucket, _, prefix = source.partition("/")
    actions = [("s3:GetObject", f"{s3}{bucket}/{prefix}"), ("s3:PutObject", f"{s3}{target}/answer.out")]
    try:
        preflight.check_role_actions(aws, project, role, actions)
    except AwsError as error:
        if not is_denied(error):
            raise
    except CommandError as error:
        if error.code == 2:
            raise
        text = str(error).partition(": `invoke role")[0]
        command = f"invoke role --create --read {settings.source} --write {settings.to}"
        raise CommandError(3, f"{text}: `{command}`") from None


def find_running(aws: Aws, project: str, settings: BatchSettings) -> str | None:
    """A running job with the same source and target, as after an interrupted command."""
    for summary in remove.running_jobs(aws, project):
        name = summary["TransformJobName"]
        job = aws("sagemaker").describe_transform_job(TransformJobName=name)
        source = job["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        if (source, job["TransformOutput"]["S3OutputPath"]) == (settings.source, settings.to):
            return name
    return None


def start(aws: Aws, project: str, build: Path, settings: BatchSettings) -> str:
    """Create the model and the job; returns the job's name."""
    archive = read_archive(build, aws)
    role = find_role(aws, settings.role, project)
    check_role(aws, project, settings, role)
    image = image_uri(aws, settings.stack, build, settings.instance)
    model = model_request(project, image, archive, role, settings)
    price = estimate_price(aws.region, "batch", instance=settings.instance, count=settings.count)
    print(f"{price.sentence}; `invoke destroy` stops it", flush=True)
    tags = {PROJECT_TAG: project} | settings.tags
    create_if_missing(aws, project, "model", model, tags)
    name = f"{project}-batch-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    request = job_request(settings, name, model["ModelName"])
    retry_until_consistent(aws("sagemaker").create_transform_job, **request, Tags=tag_list(tags))
    return name


def job_request(settings: BatchSettings, name: str, model: str) -> dict:
    """CreateTransformJob: one picture per request, unchanged from S3."""
    key = {"KmsKeyId": settings.kms_key} if settings.kms_key else {}
    volume = {"VolumeKmsKeyId": settings.kms_key} if settings.kms_key else {}
    ami = {"TransformAmiVersion": TABLE["gpu_batch_ami"]} if is_gpu(settings.instance) else {}
    return {
        "TransformJobName": name,
        "ModelName": model,
        "BatchStrategy": "SingleRecord",
        "MaxConcurrentTransforms": settings.concurrency,
        "MaxPayloadInMB": settings.payload,
        "TransformInput": {
            "ContentType": CONTENT_TYPE,
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": settings.source}},
        },
        "TransformOutput": {"S3OutputPath": settings.to, "Accept": "application/json", **key},
        "TransformResources": {
            "InstanceType": settings.instance,
            "InstanceCount": settings.count,
            **ami,
            **volume,
        },
    }
