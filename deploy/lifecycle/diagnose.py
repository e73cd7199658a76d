"""Why an endpoint failed: AWS's reason, the end of its log, and the likely cause among those known."""

import re
from datetime import datetime

from aws.client import Aws, AwsError, as_command_error, is_missing, list_all
from common import terminal_safe

LINES = 15
STREAMS = 5
AWS_CAUSES = (  # a pattern in AWS's reason, and what it usually means; the first one that fits is said
    (
        "[Ii]nsufficient.{0,20}capacity|CapacityError",
        "AWS has no such instance left here now: try another type",
    ),
    ("image size|Image size", "the image is too large for serverless (10 GB): choose kind real-time"),
    (
        r"\bECR\b|[Ii]mage .*(does not exist|not found)|CannotPullContainer|pull.{0,20}image",
        "the image cannot be fetched: check `stack`, and that the role may read ECR",
    ),
    (
        "model data|ModelData|Failed to download",
        "the archive cannot be fetched: the role needs s3:GetObject on it, in the same Region",
    ),
    (
        "not authorized|AccessDenied|[Aa]ssume",
        "the execution role lacks a permission: `invoke role --create`",
    ),
)
CAUSES = (  # the same, in what the container wrote, or else in the reason
    ("exec format error", "the image is for another processor: choose an x86 `instance`"),
    ("No module named", "code/requirements.txt lacks a package, or the archive is old: run `invoke package`"),
    (
        "NameResolution|name resolution|Could not find a version|Network is unreachable|ConnectTimeout",
        "packages could not be fetched: with `isolation`, or in a VPC without a way out, nothing can be",
    ),
    (
        "CUDA driver|driver version|forward compatibility|libcuda",
        "the machine image's driver does not fit the image's CUDA: leave `ami` empty",
    ),
    (
        r"out of memory|OutOfMemory|MemoryError|SIGKILL|exit code:? 137|was killed",
        "the instance has too little memory: choose a larger `instance` (or `memory`, if serverless)",
    ),
    ("SIGSEGV|Segmentation fault|exit code:? 139", "native code crashed: the versions in the image differ"),
    (
        "not authorized to perform|AccessDenied",
        "the execution role lacks a permission: `invoke role --create`",
    ),
    (
        "ping health check|health check",
        "the container died or was not ready in time: its log says why; if it was only slow, raise `startup`",
    ),
)


def explain(aws: Aws, group: str, reason: str, since: datetime, prefix: str = "") -> str:
    """The reason, the last lines of the log since then, and the likely cause: several lines of text."""
    text, lines = [terminal_safe(reason) or "AWS gives no reason"], []
    try:
        lines = last_lines(aws, group, since, prefix)
        log = "\n".join(f"  {line}" for line in lines)
        text.append(f"its log ends with:\n{log}" if lines else "it has written no log")
    except AwsError as error:
        text.append(f"its log cannot be read: {as_command_error(error)}")
    if cause := likely_cause(reason, lines):
        text.append(f"likely cause: {cause}")
    return "\n".join(text)


def likely_cause(reason: str, lines: list[str]) -> str | None:
    """The first known cause: of AWS's own in its reason, then in the log, then in the reason."""
    for text, causes in ((reason, AWS_CAUSES), ("\n".join(lines), CAUSES), (reason, CAUSES)):
        for pattern, cause in causes:
            if re.search(pattern, text):
                return cause
    return None


def last_lines(aws: Aws, group: str, since: datetime, prefix: str = "") -> list[str]:
    """The end of what was logged since then, oldest first, and safe to print. Raises what botocore raises.

    `prefix` is the beginning of the streams' names; without one, the streams are the youngest.
    """
    which = {"logStreamNamePrefix": prefix} if prefix else {"orderBy": "LastEventTime", "descending": True}
    start = int(since.timestamp() * 1000)
    request = {"logGroupName": group, "PaginationConfig": {"MaxItems": STREAMS}, **which}
    events = []
    try:
        for stream in list_all(aws("logs"), "describe_log_streams", "logStreams", **request):
            name = stream["logStreamName"]
            found = aws("logs").get_log_events(
                logGroupName=group, logStreamName=name, startTime=start, limit=LINES
            )
            events += found["events"]
    except AwsError as error:
        if not is_missing(error):
            raise
    ordered = sorted(events, key=lambda event: event["timestamp"])
    return [terminal_safe(event["message"]).rstrip()[:300] for event in ordered[-LINES:]]
