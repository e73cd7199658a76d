"""Why an endpoint failed: AWS's reason, the end of its log, and the likely cause."""

import re
from datetime import datetime

from aws.client import Aws, AwsError, as_command_error, is_missing, list_all
from common import terminal_safe

LINES = 15
STREAMS = 5
AWS_CAUSES = (  # a pattern in AWS's reason, and its usual meaning; the first match counts
    (
        "[Ii]nsufficient.{0,20}capacity|CapacityError",
        "AWS has no capacity for this instance type in this Region now: try another type",
    ),
    ("image size|Image size", "the image is too large for serverless (10 GB): choose kind real-time"),
    (
        r"\bECR\b|[Ii]mage .*(does not exist|not found)|CannotPullContainer|pull.{0,20}image",
        "the image cannot be pulled: check `stack`, and that the role may read ECR",
    ),
    (
        "model data|ModelData|Failed to download",
        "the archive cannot be downloaded: the role needs s3:GetObject on it, in the same Region",
    ),
    (
        "not authorized|AccessDenied|[Aa]ssume",
        "the execution role lacks a permission: `invoke role --create`",
    ),
)
CAUSES = (  # the same for the container's log, or else the reason
    ("exec format error", "the image is for another processor: choose an x86 `instance`"),
    ("No module named", "code/requirements.txt lacks a package, or the archive is old: run `invoke package`"),
    (
        "NameResolution|name resolution|Could not find a version|Network is unreachable|ConnectTimeout",
        "no packages could be downloaded: the network is closed by `isolation` or a VPC without internet",
    ),
    (
        "CUDA driver|driver version|forward compatibility|libcuda",
        "the machine image's driver does not fit the image's CUDA: leave `ami` empty",
    ),
    (
        r"out of memory|OutOfMemory|MemoryError|SIGKILL|exit code:? 137|was killed",
        "the instance has too little memory: choose a larger `instance` (or `memory`, if serverless)",
    ),
    (
        "SIGSEGV|Segmentation fault|exit code:? 139",
        "native code crashed: versions in the image differ",
    ),
    (
        "not authorized to perform|AccessDenied",
        "the execution role lacks a permission: `invoke role --create`",
    ),
    (
        "ping health check|health check",
        "the container exited or was not ready in time: its log says why; if only slow, raise `startup`",
    ),
)


def explain(aws: Aws, group: str, reason: str, since: datetime, prefix: str = "") -> str:
    """The reason, the last lines of the log since then, and the likely cause: several lines of text.

    `prefix` is last_lines's.
    """
    text, lines = [terminal_safe(reason) or "AWS gives no reason"], list[str]()
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
    """The first known cause: in AWS's reason, then in the log, then again in the reason."""
    for text, causes in ((reason, AWS_CAUSES), ("\n".join(lines), CAUSES), (reason, CAUSES)):
        for pattern, cause in causes:
            if re.search(pattern, text):
                return cause
    return None


def last_lines(aws: Aws, group: str, since: datetime, prefix: str = "") -> list[str]:
    """The last log lines since then, oldest first, safe to print. Raises what botocore raises.

    Of the streams whose names start with `prefix`; without it, of the newest ones.
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
