"""Building the image in the user's account, for machines without Docker: a CodeBuild project of its own."""

import contextlib
import io
import math
import sys
import time
import uuid
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

from aws.client import Aws, none_if_missing, retry_until_consistent
from aws.names import PROJECT_TAG, build_log_group, build_role_name, image_name, tag_list
from aws.roles import check_role_is_ours
from common import CommandError, terminal_safe
from ecr import docker_build
from ecr.catalogue import TABLE

FACTS = TABLE["codebuild"]
BUILDSPEC = Path(__file__).with_name("buildspec.yml")
SIZE = "BUILD_GENERAL1_SMALL"
MINUTES = 15  # after which CodeBuild stops a build; one takes a few
PAUSE = 3  # seconds between two requests
MAX_BUILDS = 20  # the newest builds, which are searched for running ones
STOP_CHECKS = 20  # requests until a build that is being stopped is given up
LOG_LINES = 10  # last lines of the log, in the error message of a failed build
IN_PROGRESS = "IN_PROGRESS"


def build(
    aws: Aws, project: str, bucket: str | None, image: str, architecture: str, base: str | None
) -> None:
    """Build `image` (registry/repository:tag) and push it, or follow the build of it that is running.

    Raises CommandError.
    """
    check_project(aws, project)
    build_id = find_running_build(aws, project, image)
    if build_id:
        print(f"{build_id}: a build of this image is already running; following it", flush=True)
    else:
        arn = find_build_role(aws, project)
        source = upload_context(aws, project, bucket, image.rpartition(":")[2])
        create_project(aws, project, arn, source)
        build_id = start_build(aws, project, source, image, architecture, base)
    follow_build(aws, project, build_id)


def price_sentence(architecture: str) -> str:
    """CodeBuild's price for a build."""
    known = FACTS["per_minute"][architecture]
    most = math.ceil(100 * MINUTES * known["price"]) / 100
    per_minute = f"${known['price']:g} a minute ({known['region']}, {known['date']})"
    return f"{per_minute}: a few cents, at most ${most:.2f} a build"


def find_build_role(aws: Aws, project: str) -> str:
    """The ARN of the role that CodeBuild assumes. Raises CommandError if it is missing or somebody else's."""
    name = build_role_name(project)
    found = none_if_missing(aws("iam").get_role, RoleName=name)
    if found is None:
        raise CommandError(2, f"CodeBuild needs the role {name}: `invoke role --create` creates it")
    check_role_is_ours(found["Role"], project)
    return found["Role"]["Arn"]


# --- the source


def upload_context(aws: Aws, project: str, bucket: str | None, tag: str) -> str:
    """Upload the build's files to S3; returns bucket/key. Raises CommandError."""
    bucket = find_bucket(aws("s3"), bucket, aws.region, aws.account)
    key = f"{project}/image/{tag}.zip"
    aws("s3").put_object(Bucket=bucket, Key=key, Body=zip_context(), ChecksumAlgorithm="SHA256")
    return f"{bucket}/{key}"


def zip_context() -> bytes:
    """A zip of the files that serve/Dockerfile reads; equal files make equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: compression differs between versions of zlib
        for name, file in docker_build.build_files().items():
            entry = zipfile.ZipInfo(name)  # its date is 1980-01-01
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    return buffer.getvalue()


def find_bucket(s3: Any, given: str | None, region: str, account: str) -> str:
    """The bucket's name; SageMaker's default bucket is created if it is missing.

    Raises CommandError if a given bucket does not exist, or if the bucket is in another Region than `region`.
    The same rule as in package/upload.py: both may be the first to need the bucket.
    """
    bucket = given or f"sagemaker-{region}-{account}"
    # Anyone can guess the default name and create that bucket first: its owner must be this account.
    owner = {} if given else {"ExpectedBucketOwner": account}
    head = none_if_missing(s3.head_bucket, Bucket=bucket, **owner)
    if head is None and given:
        text = f"there is no bucket {bucket}: create it, or leave `bucket` empty for SageMaker's own"
        raise CommandError(3, text)
    if head is None:
        create_bucket(s3, bucket, region)
    elif head.get("BucketRegion", region) != region:
        text = f"the bucket {bucket} is in {head['BucketRegion']}, but the endpoint would be in {region}"
        raise CommandError(2, f"{text}: set AWS_DEFAULT_REGION, or name another bucket")
    return bucket


def create_bucket(s3: Any, bucket: str, region: str) -> None:
    """Create a private, encrypted bucket."""
    # S3 rejects us-east-1 as a LocationConstraint: it is the default.
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # a request that boto3 retried
        s3.create_bucket(Bucket=bucket, **where)
    s3.get_waiter("bucket_exists").wait(Bucket=bucket, WaiterConfig={"Delay": 2, "MaxAttempts": 15})
    rules = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(rules, True))
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    print(f"s3://{bucket}: created, private and encrypted")


# --- the CodeBuild project


def find_project(aws: Aws, project: str) -> dict | None:
    """The CodeBuild project, None if there is none."""
    found = aws("codebuild").batch_get_projects(names=[image_name(project)])["projects"]
    return found[0] if found else None


def check_project(aws: Aws, project: str) -> bool:
    """Whether there is a CodeBuild project. Raises CommandError if it is somebody else's."""
    found = find_project(aws, project)
    if found and {"key": PROJECT_TAG, "value": project} not in found.get("tags", []):
        text = f"the CodeBuild project {found['name']} was not created by this tool"
        raise CommandError(2, f"{text}: delete it, or give your project another name")
    return found is not None


def create_project(aws: Aws, project: str, role: str, source: str) -> None:
    """Create the CodeBuild project unless it exists. `start_build` overrides what differs between builds."""
    if find_project(aws, project):
        return
    request = {
        "name": image_name(project),
        "description": f"builds the serving image of {project}",
        "source": {"type": "S3", "location": source, "buildspec": BUILDSPEC.read_text()},
        "artifacts": {"type": "NO_ARTIFACTS"},
        # Docker inside CodeBuild needs the privileged mode.
        "environment": FACTS["amd64"] | {"computeType": SIZE, "privilegedMode": True},
        "serviceRole": role,
        "timeoutInMinutes": MINUTES,
        "queuedTimeoutInMinutes": 2 * MINUTES,
        "tags": [{"key": tag["Key"], "value": tag["Value"]} for tag in tag_list({PROJECT_TAG: project})],
        "logsConfig": {"cloudWatchLogs": {"status": "ENABLED", "groupName": build_log_group(project)}},
    }
    retry_until_consistent(aws("codebuild").create_project, **request)
    print(f"{image_name(project)}: CodeBuild project created", flush=True)


# --- the build


def start_build(aws: Aws, project: str, source: str, image: str, architecture: str, base: str | None) -> str:
    """Start a build; its id."""
    variables = {"IMAGE": image, "ARCHITECTURE": architecture, "BASE": base or ""}
    started = aws("codebuild").start_build(
        projectName=image_name(project),
        sourceLocationOverride=source,
        buildspecOverride=BUILDSPEC.read_text(),
        environmentTypeOverride=FACTS[architecture]["type"],
        imageOverride=FACTS[architecture]["image"],
        environmentVariablesOverride=[
            {"name": name, "value": value, "type": "PLAINTEXT"} for name, value in variables.items()
        ],
        idempotencyToken=uuid.uuid4().hex,  # a request that boto3 retries starts no second build
    )
    return started["build"]["id"]


def running_builds(aws: Aws, project: str) -> list[dict]:
    """The project's running builds, the newest first."""
    codebuild = aws("codebuild")
    order = {"projectName": image_name(project), "sortOrder": "DESCENDING"}
    listed = none_if_missing(codebuild.list_builds_for_project, **order)
    ids = listed["ids"][:MAX_BUILDS] if listed else []
    builds = codebuild.batch_get_builds(ids=ids)["builds"] if ids else []
    return [build for build in builds if build["buildStatus"] == IN_PROGRESS]


def find_running_build(aws: Aws, project: str, image: str) -> str | None:
    """The id of a running build of this image."""
    for build in running_builds(aws, project):
        variables = build["environment"].get("environmentVariables", [])
        if ("IMAGE", image) in [(variable["name"], variable["value"]) for variable in variables]:
            return build["id"]
    return None


def follow_build(aws: Aws, project: str, build_id: str) -> None:
    """Print a build's phases and log until it ends. Raises CommandError, with the log's end, if it failed."""
    last: deque[str] = deque(maxlen=LOG_LINES)
    phase, token = "", None
    try:
        while True:
            (build,) = aws("codebuild").batch_get_builds(ids=[build_id])["builds"]
            if build.get("currentPhase", phase) != phase:
                phase = build["currentPhase"]
                print(f"codebuild: {phase.lower().replace('_', ' ')}", flush=True)
            token = print_log(aws, build, token, last)
            if build["buildStatus"] != IN_PROGRESS:
                break
            time.sleep(PAUSE)
        time.sleep(PAUSE)  # the last lines come late
        print_log(aws, build, token, last)
    except KeyboardInterrupt:
        text = f"the build continues in your account, for {MINUTES} minutes at most"
        advice = "the same command follows it again, `invoke image --delete` stops it"
        print(f"{build_id}: {text}; {advice}", file=sys.stderr)
        raise
    if build["buildStatus"] != "SUCCEEDED":
        raise CommandError(1, failure_text(build, last))


def print_log(aws: Aws, build: dict, token: str | None, last: deque[str]) -> str | None:
    """Print the log after `token` and append it to `last`; returns the next token."""
    logs = build.get("logs", {})
    if not logs.get("streamName"):  # no log before CodeBuild has found a machine
        return token
    request = {"logGroupName": logs["groupName"], "logStreamName": logs["streamName"]}
    while True:
        since = {"nextToken": token} if token else {}
        page = none_if_missing(aws("logs").get_log_events, **request, startFromHead=True, **since)
        if page is None:
            return token
        for event in page["events"]:
            line = terminal_safe(event["message"].rstrip())
            last.append(line)
            print(f"  {line}", flush=True)
        # At the end of a stream CloudWatch returns the token that it was given.
        if page["nextForwardToken"] == token or not page["events"]:
            return page["nextForwardToken"]
        token = page["nextForwardToken"]


def failure_text(build: dict, last: deque[str]) -> str:
    """Why a build failed: the phase, AWS's message, and the last lines of the log."""
    phases = [
        phase for phase in build.get("phases", []) if phase.get("phaseStatus", "SUCCEEDED") != "SUCCEEDED"
    ]
    phase = phases[0] if phases else {}
    contexts = phase.get("contexts", [])
    reason = "; ".join(terminal_safe(context["message"]) for context in contexts if context.get("message"))
    where = f" in {phase['phaseType']}" if phase else ""
    text = f"the build ended as {build['buildStatus']}{where}: {reason or 'AWS gives no reason'}"
    return "\n  ".join([text + (", its log ends with:" if last else ""), *last])


# --- removal


def stop_builds(aws: Aws, project: str) -> None:
    """Stop running builds and wait until they have stopped, so that they write no more."""
    for build in running_builds(aws, project):
        none_if_missing(aws("codebuild").stop_build, id=build["id"])
    for _ in range(STOP_CHECKS):
        if not running_builds(aws, project):
            return
        time.sleep(PAUSE)


def remove_project(aws: Aws, project: str) -> None:
    """Stop its builds, and delete the CodeBuild project."""
    stop_builds(aws, project)
    none_if_missing(aws("codebuild").delete_project, name=image_name(project))
