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

import context
from aws import Aws, Stop, unless_missing
from images import TABLE
from names import PROJECT, build_log_group, build_role_name, image_name, tag_list
from patience import patiently
from printable import printable
from role import check_ours

FACTS = TABLE["codebuild"]
BUILDSPEC = Path(__file__).with_name("buildspec.yml")
SIZE = "BUILD_GENERAL1_SMALL"
MINUTES = 15  # after which AWS stops a build; it takes a few
PAUSE = 3  # seconds between two looks
LOOKED_AT = 20  # builds
STOPPING = 20  # looks at a build that was stopped
LAST = 10  # lines of the log that explain a failure
GOING = "IN_PROGRESS"


def build(
    aws: Aws, project: str, bucket: str | None, image: str, architecture: str, base: str | None
) -> None:
    """Build `image` (registry/repository:tag) and push it, or follow the build that does. Raises Stop."""
    check_project(aws, project)
    number = running(aws, project, image)
    if number:
        print(f"{number}: a build of this image is running, and is followed", flush=True)
    else:
        arn = role(aws, project)
        place = upload(aws, project, bucket, image.rpartition(":")[2])
        make_project(aws, project, arn, place)
        number = start(aws, project, place, image, architecture, base)
    follow(aws, project, number)


def price(architecture: str) -> str:
    """What CodeBuild takes, in words."""
    known = FACTS["per_minute"][architecture]
    most = math.ceil(100 * MINUTES * known["price"]) / 100
    return (
        f"${known['price']:g} a minute ({known['region']}, {known['date']}): a few cents,"
        f" at most ${most:.2f} a build"
    )


def role(aws: Aws, project: str) -> str:
    """The ARN of the role that CodeBuild takes on. Raises Stop if there is none, or somebody else's."""
    name = build_role_name(project)
    found = unless_missing(aws("iam").get_role, RoleName=name)
    if found is None:
        raise Stop(2, f"CodeBuild needs the role {name}: `invoke role --create` makes it")
    check_ours(found["Role"], project)
    return found["Role"]["Arn"]


# --- what is built


def upload(aws: Aws, project: str, bucket: str | None, tag: str) -> str:
    """Put what the build reads into S3; returns bucket/key. Raises Stop."""
    bucket = find_bucket(aws, bucket)
    key = f"{project}/image/{tag}.zip"
    aws("s3").put_object(Bucket=bucket, Key=key, Body=packed(), ChecksumAlgorithm="SHA256")
    return f"{bucket}/{key}"


def packed() -> bytes:
    """A zip of what serve/Dockerfile reads; equal files make equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: compression differs between versions of zlib
        for name, file in context.files().items():
            entry = zipfile.ZipInfo(name)  # of 1980
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    return buffer.getvalue()


def find_bucket(aws: Aws, given: str | None) -> str:
    """The bucket's name; SageMaker's own is made if it is missing. Raises Stop."""
    s3, bucket = aws("s3"), given or f"sagemaker-{aws.region}-{aws.account}"
    # That name can be guessed, so a stranger may have taken it: the owner must be this account.
    owner = {} if given else {"ExpectedBucketOwner": aws.account}
    if unless_missing(s3.head_bucket, Bucket=bucket, **owner) is not None:
        return bucket
    if given:
        raise Stop(3, f"there is no bucket {bucket}: make it, or leave `bucket` empty for SageMaker's own")
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
    if found and {"key": PROJECT, "value": project} not in found.get("tags", []):
        text = f"the CodeBuild project {found['name']} was not made by this tool"
        raise Stop(2, f"{text}: delete it, or give your project another name")
    return found is not None


def make_project(aws: Aws, project: str, role: str, place: str) -> None:
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
        "tags": [{"key": one["Key"], "value": one["Value"]} for one in tag_list({PROJECT: project})],
        "logsConfig": {"cloudWatchLogs": {"status": "ENABLED", "groupName": build_log_group(project)}},
    }
    patiently(aws("codebuild").create_project, **request)
    print(f"{image_name(project)}: CodeBuild project made", flush=True)


# --- the build


def start(aws: Aws, project: str, place: str, image: str, architecture: str, base: str | None) -> str:
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


def builds(aws: Aws, project: str) -> list[dict]:
    """The project's builds that are running, the last first."""
    codebuild = aws("codebuild")
    order = {"projectName": image_name(project), "sortOrder": "DESCENDING"}
    listed = unless_missing(codebuild.list_builds_for_project, **order)
    ids = listed["ids"][:LOOKED_AT] if listed else []
    found = codebuild.batch_get_builds(ids=ids)["builds"] if ids else []
    return [one for one in found if one["buildStatus"] == GOING]


def running(aws: Aws, project: str, image: str) -> str | None:
    """The id of a running build of this image."""
    wanted = ("IMAGE", image)
    for one in builds(aws, project):
        variables = one["environment"].get("environmentVariables", [])
        if wanted in [(each["name"], each["value"]) for each in variables]:
            return one["id"]
    return None


def follow(aws: Aws, project: str, number: str) -> None:
    """Print what a build does and writes until it ends. Raises Stop, with its last lines, if it failed."""
    last: deque[str] = deque(maxlen=LAST)
    phase, token = "", None
    try:
        while True:
            (found,) = aws("codebuild").batch_get_builds(ids=[number])["builds"]
            if found.get("currentPhase", phase) != phase:
                phase = found["currentPhase"]
                print(f"codebuild: {phase.lower().replace('_', ' ')}", flush=True)
            token = print_log(aws, found, token, last)
            if found["buildStatus"] != GOING:
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
        raise Stop(1, failure(found, last))


def print_log(aws: Aws, found: dict, token: str | None, last: deque[str]) -> str | None:
    """Print what the build has written since the last look, which `token` stands for; the next token."""
    place = found.get("logs", {})
    if not place.get("streamName"):  # nothing is written before a machine has been found
        return token
    request = {"logGroupName": place["groupName"], "logStreamName": place["streamName"]}
    while True:
        since = {"nextToken": token} if token else {}
        page = unless_missing(aws("logs").get_log_events, **request, startFromHead=True, **since)
        if page is None:
            return token
        for event in page["events"]:
            line = printable(event["message"].rstrip())
            last.append(line)
            print(f"  {line}", flush=True)
        if page["nextForwardToken"] == token or not page["events"]:
            return page["nextForwardToken"]
        token = page["nextForwardToken"]


def failure(found: dict, last: deque[str]) -> str:
    """Why a build failed: the phase, AWS's words, and the last lines that it wrote."""
    phases = [one for one in found.get("phases", []) if one.get("phaseStatus", "SUCCEEDED") != "SUCCEEDED"]
    phase = phases[0] if phases else {}
    said = "; ".join(printable(one["message"]) for one in phase.get("contexts", []) if one.get("message"))
    where = f" in {phase['phaseType']}" if phase else ""
    text = f"the build ended as {found['buildStatus']}{where}: {said or 'AWS gives no reason'}"
    return "\n  ".join([text + (", after it wrote" if last else ""), *last])


# --- the end


def stop_builds(aws: Aws, project: str) -> None:
    """Stop what is running, and wait until it has, so that it writes no more."""
    for one in builds(aws, project):
        unless_missing(aws("codebuild").stop_build, id=one["id"])
    for _ in range(STOPPING):
        if not builds(aws, project):
            return
        time.sleep(PAUSE)


def remove_project(aws: Aws, project: str) -> None:
    """Stop its builds, and delete the CodeBuild project."""
    stop_builds(aws, project)
    unless_missing(aws("codebuild").delete_project, name=image_name(project))
