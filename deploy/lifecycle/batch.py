"""Every picture under an S3 prefix, without an endpoint: a batch transform costs only while it runs."""

import re
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime

from aws.client import Aws, AwsError, is_denied, retry_until_consistent
from aws.names import PROJECT_TAG, tag_list
from aws.pricing import estimate_price
from aws.roles import find_role
from aws.wait import STEPS, wait_until
from common import CommandError
from ecr.catalogue import TABLE, is_gpu
from lifecycle import preflight, remove
from lifecycle.apply import create_if_missing
from lifecycle.diagnose import explain
from lifecycle.plan import Plan, check_instance_type, model_request, read_archive
from lifecycle.settings import add_model_arguments, check_model, positive_integer

CONTENT_TYPE = "application/x-image"
LOG_GROUP = "/aws/sagemaker/TransformJobs"


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `transform`."""
    parser.add_argument("source", help="s3://bucket/prefix that holds pictures and nothing else")
    parser.add_argument("to", help="s3://bucket/prefix; the answer to cat.jpg becomes cat.jpg.out, in JSON")
    parser.add_argument(
        "--concurrency", type=positive_integer, default=4, help="pictures at a time per instance"
    )
    parser.add_argument(
        "--payload", type=positive_integer, default=25, help="MB of the largest picture (%(default)s)"
    )
    add_model_arguments(parser)


def run(aws: Aws, args: Namespace) -> int:
    """Start the job, or find the one that is running, and wait until it is done. Raises Stop."""
    check(aws, args)
    job = find_running(aws, args) or start(aws, args)

    def look() -> dict:
        return aws("sagemaker").describe_transform_job(TransformJobName=job)

    begun = datetime.now(UTC)
    done = wait_until(
        f"transform {job}",
        look,
        lambda found, _: found["TransformJobStatus"] not in remove.RUNNING_STATES,
        lambda found: STEPS.get(found["TransformJobStatus"], found["TransformJobStatus"]),
    )
    if done["TransformJobStatus"] != "Completed":
        begun = done.get("CreationTime", begun)
        reason = f"{done['TransformJobStatus']}: {done.get('FailureReason') or 'AWS gives no reason'}"
        raise CommandError(1, f"the transform {job} ended as {explain(aws, LOG_GROUP, reason, begun, job)}")
    print(f"done: the answers are under {args.to}, one .out file per picture")
    return 0


def check(aws: Aws, args: Namespace) -> None:
    """Raises Stop for what AWS would refuse, or where there is nothing to do."""
    check_model(args)
    check_instance_type(aws, args.instance, "TransformInstanceType")
    for place in (args.source, args.to):
        if not re.match("s3://[a-z0-9][a-z0-9.-]+(/|$)", place):
            raise CommandError(2, f"{place!r} is no address in S3: it looks like s3://bucket/prefix")
    if args.concurrency * args.payload > 100:
        raise CommandError(2, "`concurrency` times `payload` is at most 100 MB in a batch transform")
    bucket, _, prefix = args.source.removeprefix("s3://").partition("/")
    try:
        found = aws("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
    except AwsError as error:
        if not is_denied(error):  # the role may be allowed to read what you are not
            raise
        return
    if not found.get("Contents"):
        raise CommandError(2, f"there is nothing under {args.source}")
    if empty := [one["Key"] for one in found["Contents"] if not one["Size"]]:
        print(f"note: s3://{bucket}/{empty[0]} is empty, and will be sent as a picture like the rest")


def check_role(aws: Aws, args: Namespace, role: str) -> None:
    """Raises Stop when the role may not read the pictures or write the answers; unknown is not refused."""
    s3 = f"arn:{aws.partition}:s3:::"
    bucket, _, prefix = args.source.removeprefix("s3://").partition("/")
    aim = args.to.removeprefix("s3://").rstrip("/")
    actions = [("s3:GetObject", f"{s3}{bucket}/{prefix}"), ("s3:PutObject", f"{s3}{aim}/answer.out")]
    try:
        preflight.check_role_actions(aws, args.project, role, actions)
    except AwsError as error:
        if not is_denied(error):
            raise
    except CommandError as stop:
        if stop.code == 2:
            raise
        text = str(stop).partition(": `invoke role")[0]
        raise CommandError(
            3, f"{text}: `invoke role --create --read {args.source} --write {args.to}`"
        ) from None


def find_running(aws: Aws, args: Namespace) -> str | None:
    """A job of this project with the same source and aim, which an interrupted command left at work."""
    for summary in remove.running_jobs(aws, args.project):
        name = summary["TransformJobName"]
        job = aws("sagemaker").describe_transform_job(TransformJobName=name)
        source = job["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        if (source, job["TransformOutput"]["S3OutputPath"]) == (args.source, args.to):
            return name
    return None


def start(aws: Aws, args: Namespace) -> str:
    """Make the model and the job; returns the job's name."""
    project = args.project
    archive = read_archive(args.build, aws)
    settings = Namespace(**vars(args), kind="real-time")
    role = find_role(aws, args.role, project)
    check_role(aws, args, role)
    model = model_request(aws, project, archive, role, settings)
    cost = estimate_price(aws.region, "batch", instance=args.instance, count=args.count)
    print(f"{cost.sentence}; `invoke destroy` stops it", flush=True)
    plan = Plan(project, archive, model, {}, {PROJECT_TAG: project} | args.tags, settings)
    create_if_missing(aws, plan, "model", model)
    name = f"{project}-batch-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    request = job_request(args, name, model["ModelName"])
    retry_until_consistent(aws("sagemaker").create_transform_job, **request, Tags=tag_list(plan.tags))
    return name


def job_request(args: Namespace, name: str, model: str) -> dict:
    """CreateTransformJob: one picture a request, as it lies in S3."""
    key = {"KmsKeyId": args.kms_key} if args.kms_key else {}
    volume = {"VolumeKmsKeyId": args.kms_key} if args.kms_key else {}
    ami = {"TransformAmiVersion": TABLE["gpu_batch_ami"]} if is_gpu(args.instance) else {}
    return {
        "TransformJobName": name,
        "ModelName": model,
        "BatchStrategy": "SingleRecord",
        "MaxConcurrentTransforms": args.concurrency,
        "MaxPayloadInMB": args.payload,
        "TransformInput": {
            "ContentType": CONTENT_TYPE,
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": args.source}},
        },
        "TransformOutput": {"S3OutputPath": args.to, "Accept": "application/json", **key},
        "TransformResources": {
            "InstanceType": args.instance,
            "InstanceCount": args.count,
            **ami,
            **volume,
        },
    }
