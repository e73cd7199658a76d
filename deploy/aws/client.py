"""boto3 as deploy/ uses it: clients, missing resources, retries, and every AWS error as one sentence."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from common import CommandError, terminal_safe

AwsError = (BotoCoreError, ClientError)
Failure = (CommandError, *AwsError)
MISSING = (  # error codes
    "404|NoSuchKey|NoSuchBucket|NoSuchUpload|NoSuchEntity|ResourceNotFound|ResourceNotFoundException|ObjectNotFoundException"
    "|RepositoryNotFoundException|ImageNotFoundException|ScanNotFoundException"
)
NOT_FOUND = (  # SageMaker and Application Auto Scaling: a ValidationException with one of these messages
    "Could not find (model|endpoint|resource|(the |requested |transform )*job)|No scalable target"
)
BUSY = "Throttl|TooManyRequests|SlowDown|RequestLimit"
NETWORK = "Endpoint|Connect|Timeout|HTTPClient|Proxy|SSL"
FAULT = "Internal|Unavailable|^5\\d\\d$"
DENIED = "AccessDenied|Unauthorized|Forbidden|^403$"

ADVICE = (  # a pattern in the name of botocore's exception or in AWS's error code, the exit code, what to do
    ("NoCredentials|PartialCredentials", 3, "run `aws configure` or `aws sso login`, or set AWS_PROFILE"),
    ("^Login", 3, "log in again (`aws login`) and run the command again"),
    (
        "Expired|SSO|TokenRefresh|TokenRetrieval",
        3,
        "log in again (`aws sso login`) and run the command again",
    ),
    ("InvalidClientTokenId|InvalidAccessKeyId|Signature|Unrecog", 3, "check `aws sts get-caller-identity`"),
    ("ProfileNotFound", 2, "`aws configure list-profiles` lists the profiles"),
    ("NoRegion|UnknownRegion", 2, "set AWS_DEFAULT_REGION or run `aws configure`"),
    ("AccessDenied|Forbidden|Unauthorized|^403$", 3, "`invoke role` prints the policy that it needs"),
    (
        "LimitExceeded|QuotaExceeded",
        3,
        "delete what you do not need, or request an increase in the Service Quotas console",
    ),
    ("NoSuchBucket", 3, "`invoke package` uploads the archive again"),
    (BUSY, 3, "AWS is busy: run the command again in a minute"),
    (NETWORK, 3, "check the network, the proxy and the Region"),
    (FAULT, 3, "AWS failed internally: run the command again"),
    ("Validation|InvalidParameter|InvalidInput", 2, "correct the setting"),
    ("", 3, "run the command again, or delete everything with `invoke destroy`"),
)

# IAM and SageMaker are eventually consistent: a role that was just created is rejected for some seconds.
RETRY_PAUSES = (1, 2, 4, 8, 15, 30)  # seconds between tries
INCONSISTENT = "Could not (find|access)|assume"  # as in: could not access, or assume, the role


@dataclass
class Aws:
    """An account and a Region; `aws("s3")` is a boto3 client, created once."""

    session: Any
    region: str
    partition: str
    account: str
    caller: str  # the ARN of the identity whose credentials are used
    clients: dict[str, Any] = field(default_factory=dict)

    def __call__(self, service: str) -> Any:
        """The client of a service."""
        if service not in self.clients:
            self.clients[service] = self.session.client(service, config=client_config())
        return self.clients[service]


def client_config() -> Config:
    """Retries for throttling, AWS's internal errors and lost connections, with exponential backoff."""
    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", 6))
    retries = {"mode": "standard", "total_max_attempts": attempts}
    # InvokeEndpoint may take 60 s: with botocore's default of 60 s a slow response would be sent again.
    return Config(connect_timeout=10, read_timeout=70, retries=retries)


def connect() -> Aws:
    """The user's account. Raises CommandError without credentials or a Region, and what botocore raises."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise CommandError(3, f"no AWS credentials were found: {ADVICE[0][2]}")
    if not session.region_name:
        raise CommandError(2, f"no AWS Region is set: {ADVICE[5][2]}")
    partition = session.get_partition_for_region(session.region_name)
    identity = session.client("sts", config=client_config()).get_caller_identity()
    return Aws(session, session.region_name, partition, identity["Account"], identity["Arn"])


# --- calls


def none_if_missing(call: Callable, **request: Any) -> Any:
    """A call's response; None if the resource does not exist."""
    try:
        return call(**request)
    except ClientError as error:
        if is_missing(error):
            return None
        raise


def none_if_denied(call: Callable, *arguments: Any) -> Any:
    """A call's result; None if the permission is missing. For what the user's settings do not mention."""
    try:
        return call(*arguments)
    except ClientError as error:
        if is_denied(error):
            return None
        raise


def retry_until_consistent(call: Callable, **request: Any) -> Any:
    """A call's response, retried while AWS does not know a resource that was just created.

    None if the resource exists already, as after a request that boto3 retried.
    """
    for pause in (*RETRY_PAUSES, None):
        try:
            return call(**request)
        except ClientError as error:
            if already_exists(error):
                return None
            if pause is None or not is_inconsistent(error):
                raise
            time.sleep(pause)
    raise AssertionError


def list_all(client: Any, operation: str, key: str, **request: Any) -> list[dict]:
    """Every item under `key` in the pages of a paginated operation."""
    pages = client.get_paginator(operation).paginate(**request)
    return [item for page in pages for item in page.get(key, [])]


# --- errors


def error_code(error: Exception) -> str:
    """AWS's error code, or the name of botocore's exception."""
    return error_response(error).get("Error", {}).get("Code") or type(error).__name__


def error_response(error: Exception) -> dict:
    """AWS's response; empty if there was none."""
    response = getattr(error, "response", None)  # None for botocore's connection errors
    return response if isinstance(response, dict) else {}


def is_missing(error: Exception) -> bool:
    """Whether the resource does not exist."""
    code = error_code(error)
    if code == "ValidationException":
        return bool(re.search(NOT_FOUND, str(error)))
    return bool(re.fullmatch(MISSING, code))


def already_exists(error: Exception) -> bool:
    """Whether AWS rejected a request to create what exists, as after a request that boto3 retried."""
    text = re.search("already exist", str(error), re.IGNORECASE)
    return bool(text) or error_code(error) == "ConflictException"


def is_inconsistent(error: Exception) -> bool:
    """Whether AWS rejects a request that it will soon accept (eventual consistency)."""
    invalid = error_code(error) in ("ValidationException", "InvalidInputException")
    return invalid and bool(re.search(INCONSISTENT, str(error), re.IGNORECASE))


def is_denied(error: Exception) -> bool:
    """Whether a permission is missing."""
    return isinstance(error, ClientError) and bool(re.search(DENIED, error_code(error)))


def is_transient(error: Exception) -> bool:
    """Whether the same call will probably succeed later."""
    return bool(re.search(f"{BUSY}|{NETWORK}|{FAULT}", error_code(error)))


def is_not_ready_yet(error: Exception) -> bool:
    """Whether a ValidationException is about a resource in transition or not known yet, not a setting."""
    return bool(re.search("in-progress|while it is|Could not (find|access)|[Aa]ssume", str(error)))


def as_command_error(error: Exception) -> CommandError:
    """botocore's exception as one sentence with advice; a CommandError unchanged."""
    if isinstance(error, CommandError):
        return error
    code, text = error_code(error), terminal_safe(" ".join(str(error).split())).rstrip(". ")
    retries = r"(?: \(reached max retries: \d+\))?"
    text = re.sub(rf"^An error occurred \(.*?\) when calling the (\w+) operation{retries}: ", r"\1: ", text)
    key = "" if code == "ValidationException" and is_not_ready_yet(error) else code
    exit_code, advice = next((number, hint) for pattern, number, hint in ADVICE if re.search(pattern, key))
    if is_denied(error):
        text = f"your AWS identity may not {denied_action(error)} ({text})"
    return CommandError(exit_code, f"{text}: {advice}")


def denied_action(error: Exception) -> str:
    """The action that was denied: from AWS's message, else from the operation's name."""
    named = re.search(r"not authorized to perform:? ([\w-]+:\w+)(?: on resource:? (\S+))?", str(error))
    if named:
        return named[1] + (f" on {named[2].rstrip('.')}" if named[2] else "")
    operation = getattr(error, "operation_name", "use this")
    # S3 has no permissions of these operations' names.
    return {"HeadObject": "s3:GetObject", "HeadBucket": "s3:ListBucket"}.get(operation, operation)


def run_command(body: Callable[[], int]) -> int:
    """Run a command; print AWS and user errors as one line, return the exit code."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.default_int_handler)  # handled like Ctrl-C
    try:
        return body()
    except Failure as caught:
        error = as_command_error(caught)
        print(f"error: {terminal_safe(error)}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped: the same command continues; `invoke destroy` deletes everything", file=sys.stderr)
        return 130
