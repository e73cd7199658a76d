"""Every picture under an S3 prefix, without an endpoint: a batch transform costs only while it runs."""

import re
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime

import destroy
import preflight
from apply import ensure
from aws import Aws, AwsError, Stop, is_denied
from diagnose import explain
from hourly import price
from images import TABLE, is_gpu
from names import PROJECT, tag_list
from patience import patiently
from plan import Plan, check_instance, model_request, read_archive
from role import find_role
from settings import add_model_arguments, check_model, whole
from watch import STEPS, wait_for

TAKES = "application/x-image"
LOGS = "/aws/sagemaker/TransformJobs"


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of `transform`."""
    parser.add_argument("source", help="s3://bucket/prefix that holds pictures and nothing else")
    parser.add_argument("to", help="s3://bucket/prefix; the answer to cat.jpg becomes cat.jpg.out, in JSON")
    parser.add_argument("--concurrency", type=whole, default=4, help="pictures at a time per instance")
    parser.add_argument("--payload", type=whole, default=25, help="MB of the largest picture (%(default)s)")
    add_model_arguments(parser)


def transform(aws: Aws, args: Namespace) -> int:
    """Start the job, or find the one that is running, and wait until it is done. Raises Stop."""
    check(aws, args)
    job = running(aws, args) or start(aws, args)

    def look() -> dict:
        return aws("sagemaker").describe_transform_job(TransformJobName=job)

    begun = datetime.now(UTC)
    done = wait_for(
        f"transform {job}",
        look,
        lambda found, _: found["TransformJobStatus"] not in destroy.RUNNING,
        lambda found: STEPS.get(found["TransformJobStatus"], found["TransformJobStatus"]),
    )
    if done["TransformJobStatus"] != "Completed":
        begun = done.get("CreationTime", begun)
        reason = f"{done['TransformJobStatus']}: {done.get('FailureReason') or 'AWS gives no reason'}"
        raise Stop(1, f"the transform {job} ended as {explain(aws, LOGS, reason, begun, job)}")
    print(f"done: the answers are under {args.to}, one .out file per picture")
    return 0


def check(aws: Aws, args: Namespace) -> None:
    """Raises Stop for what AWS would refuse, or where there is nothing to do."""
    check_model(args)
    check_instance(aws, args.instance, "TransformInstanceType")
    for place in (args.source, args.to):
        if not re.match("s3://[a-z0-9][a-z0-9.-]+(/|$)", place):
            raise Stop(2, f"{place!r} is no address in S3: it looks like s3://bucket/prefix")
    if args.concurrency * args.payload > 100:
        raise Stop(2, "`concurrency` times `payload` is at most 100 MB in a batch transform")
    bucket, _, prefix = args.source.removeprefix("s3://").partition("/")
    try:
        found = aws("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
    except AwsError as error:
        if not is_denied(error):  # the role may be allowed to read what you are not
            raise
        return
    if not found.get("Contents"):
        raise Stop(2, f"there is nothing under {args.source}")
    if empty := [one["Key"] for one in found["Contents"] if not one["Size"]]:
        print(f"note: s3://{bucket}/{empty[0]} is empty, and will be sent as a picture like the rest")


def check_role(aws: Aws, args: Namespace, role: str) -> None:
    """Raises Stop when the role may not read the pictures or write the answers; unknown is not refused."""
    s3 = f"arn:{aws.partition}:s3:::"
    bucket, _, prefix = args.source.removeprefix("s3://").partition("/")
    aim = args.to.removeprefix("s3://").rstrip("/")
    actions = [("s3:GetObject", f"{s3}{bucket}/{prefix}"), ("s3:PutObject", f"{s3}{aim}/answer.out")]
    try:
        preflight.role_may(aws, args.project, role, actions)
    except AwsError as error:
        if not is_denied(error):
            raise
    except Stop as stop:
        if stop.code == 2:
            raise
        text = str(stop).partition(": `invoke role")[0]
        raise Stop(3, f"{text}: `invoke role --create --read {args.source} --write {args.to}`") from None


def running(aws: Aws, args: Namespace) -> str | None:
    """A job of this project with the same source and aim, which an interrupted command left at work."""
    for summary in destroy.running_jobs(aws, args.project):
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
    cost = price(aws.region, "batch", instance=args.instance, count=args.count)
    print(f"{cost.sentence}; `invoke destroy` stops it", flush=True)
    plan = Plan(project, archive, model, {}, {PROJECT: project} | args.tags, settings)
    ensure(aws, plan, "model", model)
    name = f"{project}-batch-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    request = job_request(args, name, model["ModelName"])
    patiently(aws("sagemaker").create_transform_job, **request, Tags=tag_list(plan.tags))
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
            "ContentType": TAKES,
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
