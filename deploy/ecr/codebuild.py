"""The image built in the user's account, where there is no Docker here: a CodeBuild project of its own."""

import contextlib
import io
import math
import sys
import time
import uuid
import zipfile
from collections import deque
from pathlib import Path

from aws.client import Aws, none_if_missing, retry_until_consistent
from aws.names import PROJECT_TAG, build_log_group, build_role_name, image_name, tag_list
from aws.roles import check_role_is_ours
from common import CommandError, terminal_safe
from ecr import docker_build
from ecr.catalogue import TABLE

FACTS = TABLE["codebuild"]
BUILDSPEC = Path(__file__).with_name("buildspec.yml")
SIZE = "BUILD_GENERAL1_SMALL"
MINUTES = 15  # after which AWS stops a build; it takes a few
PAUSE = 3  # seconds between two looks
MAX_BUILDS = 20  # builds
STOP_CHECKS = 20  # looks at a build that was stopped
LOG_LINES = 10  # lines of the log that explain a failure
IN_PROGRESS = "IN_PROGRESS"


def build(
    aws: Aws, project: str, bucket: str | None, image: str, architecture: str, base: str | None
) -> None:
    """Build `image` (registry/repository:tag) and push it, or follow the build that does. Raises Stop."""
    check_project(aws, project)
    number = find_running_build(aws, project, image)
    if number:
        print(f"{number}: a build of this image is running, and is followed", flush=True)
    else:
        arn = find_build_role(aws, project)
        place = upload_context(aws, project, bucket, image.rpartition(":")[2])
        create_project(aws, project, arn, place)
        number = start_build(aws, project, place, image, architecture, base)
    follow_build(aws, project, number)


def price_sentence(architecture: str) -> str:
    """What CodeBuild takes, in words."""
    known = FACTS["per_minute"][architecture]
    most = math.ceil(100 * MINUTES * known["price"]) / 100
    return (
        f"${known['price']:g} a minute ({known['region']}, {known['date']}): a few cents,"
        f" at most ${most:.2f} a build"
    )


def find_build_role(aws: Aws, project: str) -> str:
    """The ARN of the role that CodeBuild takes on. Raises Stop if there is none, or somebody else's."""
    name = build_role_name(project)
    found = none_if_missing(aws("iam").get_role, RoleName=name)
    if found is None:
        raise CommandError(2, f"CodeBuild needs the role {name}: `invoke role --create` makes it")
    check_role_is_ours(found["Role"], project)
    return found["Role"]["Arn"]


# --- what is built


def upload_context(aws: Aws, project: str, bucket: str | None, tag: str) -> str:
    """Put what the build reads into S3; returns bucket/key. Raises Stop."""
    bucket = find_bucket(aws, bucket)
    key = f"{project}/image/{tag}.zip"
    aws("s3").put_object(Bucket=bucket, Key=key, Body=zip_context(), ChecksumAlgorithm="SHA256")
    return f"{bucket}/{key}"


def zip_context() -> bytes:
    """A zip of what serve/Dockerfile reads; equal files make equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: compression differs between versions of zlib
        for name, file in docker_build.build_files().items():
            entry = zipfile.ZipInfo(name)  # of 1980
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    return buffer.getvalue()


def find_bucket(aws: Aws, given: str | None) -> str:
    """The bucket's name; SageMaker's own is made if it is missing. Raises Stop."""
    s3, bucket = aws("s3"), given or f"sagemaker-{aws.region}-{aws.account}"
    # That name can be guessed, so a stranger may have taken it: the owner must be this account.
    owner = {} if given else {"ExpectedBucketOwner": aws.account}
    if none_if_missing(s3.head_bucket, Bucket=bucket, **owner) is not None:
        return bucket
    if given:
        raise CommandError(
            3, f"there is no bucket {bucket}: make it, or leave `bucket` empty for SageMaker's own"
        )
    place = {"CreateBucketConfiguration": {"LocationConstraint": aws.region}}
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # a request that was repeated
        s3.create_bucket(Bucket=bucket, **({} if aws.region == "us-east-1" else place))
    rules = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(rules, True))
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    print(f"s3://{bucket}: made, private and encrypted", flush=True)
    return bucket


# --- the project


def find_project(aws: Aws, project: str) -> dict | None:
    """The CodeBuild project, None if there is none."""
    found = aws("codebuild").batch_get_projects(names=[image_name(project)])["projects"]
    return found[0] if found else None


def check_project(aws: Aws, project: str) -> bool:
    """Whether there is a CodeBuild project. Raises Stop if it is somebody else's."""
    found = find_project(aws, project)
    if found and {"key": PROJECT_TAG, "value": project} not in found.get("tags", []):
        text = f"the CodeBuild project {found['name']} was not made by this tool"
        raise CommandError(2, f"{text}: delete it, or give your project another name")
    return found is not None


def create_project(aws: Aws, project: str, role: str, place: str) -> None:
    """Make the CodeBuild project, unless it is there. What differs from build to build, `start` says."""
    if find_project(aws, project):
        return
    request = {
        "name": image_name(project),
        "description": f"makes the serving image of {project}",
        "source": {"type": "S3", "location": place, "buildspec": BUILDSPEC.read_text()},
        "artifacts": {"type": "NO_ARTIFACTS"},
        "environment": FACTS["amd64"] | {"computeType": SIZE, "privilegedMode": True},
        "serviceRole": role,
        "timeoutInMinutes": MINUTES,
        "queuedTimeoutInMinutes": 2 * MINUTES,
        "tags": [{"key": one["Key"], "value": one["Value"]} for one in tag_list({PROJECT_TAG: project})],
        "logsConfig": {"cloudWatchLogs": {"status": "ENABLED", "groupName": build_log_group(project)}},
    }
    retry_until_consistent(aws("codebuild").create_project, **request)
    print(f"{image_name(project)}: CodeBuild project made", flush=True)


# --- the build


def start_build(aws: Aws, project: str, place: str, image: str, architecture: str, base: str | None) -> str:
    """Begin a build; its id."""
    variables = {"IMAGE": image, "ARCHITECTURE": architecture, "BASE": base or ""}
    begun = aws("codebuild").start_build(
        projectName=image_name(project),
        sourceLocationOverride=place,
        buildspecOverride=BUILDSPEC.read_text(),
        environmentTypeOverride=FACTS[architecture]["type"],
        imageOverride=FACTS[architecture]["image"],
        environmentVariablesOverride=[
            {"name": name, "value": value, "type": "PLAINTEXT"} for name, value in variables.items()
        ],
        idempotencyToken=uuid.uuid4().hex,  # a request that is repeated begins nothing twice
    )
    return begun["build"]["id"]


def running_builds(aws: Aws, project: str) -> list[dict]:
    """The project's builds that are running, the last first."""
    codebuild = aws("codebuild")
    order = {"projectName": image_name(project), "sortOrder": "DESCENDING"}
    listed = none_if_missing(codebuild.list_builds_for_project, **order)
    ids = listed["ids"][:MAX_BUILDS] if listed else []
    found = codebuild.batch_get_builds(ids=ids)["builds"] if ids else []
    return [one for one in found if one["buildStatus"] == IN_PROGRESS]


def find_running_build(aws: Aws, project: str, image: str) -> str | None:
    """The id of a running build of this image."""
    wanted = ("IMAGE", image)
    for one in running_builds(aws, project):
        variables = one["environment"].get("environmentVariables", [])
        if wanted in [(each["name"], each["value"]) for each in variables]:
            return one["id"]
    return None


def follow_build(aws: Aws, project: str, number: str) -> None:
    """Print what a build does and writes until it ends. Raises Stop, with its last lines, if it failed."""
    last: deque[str] = deque(maxlen=LOG_LINES)
    phase, token = "", None
    try:
        while True:
            (found,) = aws("codebuild").batch_get_builds(ids=[number])["builds"]
            if found.get("currentPhase", phase) != phase:
                phase = found["currentPhase"]
                print(f"codebuild: {phase.lower().replace('_', ' ')}", flush=True)
            token = print_log(aws, found, token, last)
            if found["buildStatus"] != IN_PROGRESS:
                break
            time.sleep(PAUSE)
        time.sleep(PAUSE)  # the last lines come late
        print_log(aws, found, token, last)
    except KeyboardInterrupt:
        text = f"the build goes on in your account, for {MINUTES} minutes at most"
        ways = "the same command follows it again, `invoke image --delete` stops it"
        print(f"{number}: {text}; {ways}", file=sys.stderr)
        raise
    if found["buildStatus"] != "SUCCEEDED":
        raise CommandError(1, failure_text(found, last))


def print_log(aws: Aws, found: dict, token: str | None, last: deque[str]) -> str | None:
    """Print what the build has written since the last look, which `token` stands for; the next token."""
    place = found.get("logs", {})
    if not place.get("streamName"):  # nothing is written before a machine has been found
        return token
    request = {"logGroupName": place["groupName"], "logStreamName": place["streamName"]}
    while True:
        since = {"nextToken": token} if token else {}
        page = none_if_missing(aws("logs").get_log_events, **request, startFromHead=True, **since)
        if page is None:
            return token
        for event in page["events"]:
            line = terminal_safe(event["message"].rstrip())
            last.append(line)
            print(f"  {line}", flush=True)
        if page["nextForwardToken"] == token or not page["events"]:
            return page["nextForwardToken"]
        token = page["nextForwardToken"]


def failure_text(found: dict, last: deque[str]) -> str:
    """Why a build failed: the phase, AWS's words, and the last lines that it wrote."""
    phases = [one for one in found.get("phases", []) if one.get("phaseStatus", "SUCCEEDED") != "SUCCEEDED"]
    phase = phases[0] if phases else {}
    said = "; ".join(terminal_safe(one["message"]) for one in phase.get("contexts", []) if one.get("message"))
    where = f" in {phase['phaseType']}" if phase else ""
    text = f"the build ended as {found['buildStatus']}{where}: {said or 'AWS gives no reason'}"
    return "\n  ".join([text + (", after it wrote" if last else ""), *last])


# --- the end


def stop_builds(aws: Aws, project: str) -> None:
    """Stop what is running, and wait until it has, so that it writes no more."""
    for one in running_builds(aws, project):
        none_if_missing(aws("codebuild").stop_build, id=one["id"])
    for _ in range(STOP_CHECKS):
        if not running_builds(aws, project):
            return
        time.sleep(PAUSE)


def remove_project(aws: Aws, project: str) -> None:
    """Stop its builds, and delete the CodeBuild project."""
    stop_builds(aws, project)
    none_if_missing(aws("codebuild").delete_project, name=image_name(project))
