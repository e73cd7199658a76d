"""AWS as the other files here use it: clients, what is not there, and every error as one sentence."""

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
MISSING = (  # error codes
    "404|NoSuchKey|NoSuchBucket|NoSuchUpload|NoSuchEntity|ResourceNotFound|ResourceNotFoundException|ObjectNotFoundException"
    "|RepositoryNotFoundException|ImageNotFoundException|ScanNotFoundException"
)
GONE = (  # what SageMaker's message says where the code says less
    "Could not find (model|endpoint|resource|(the |requested |transform )*job)|No scalable target"
)
BUSY = "Throttl|TooManyRequests|SlowDown|RequestLimit"
NETWORK = "Endpoint|Connect|Timeout|HTTPClient|Proxy|SSL"
FAULT = "Internal|Unavailable|^5\\d\\d$"
ADVICE = (  # a pattern in the name of botocore's exception or in AWS's error code, the exit code, what to do
    ("NoCredentials|PartialCredentials", 3, "run `aws configure` or `aws sso login`, or set AWS_PROFILE"),
    ("^Login", 3, "log in again (`aws login`) and repeat the command"),
    ("Expired|SSO|TokenRefresh|TokenRetrieval", 3, "log in again (`aws sso login`) and repeat the command"),
    ("InvalidClientTokenId|InvalidAccessKeyId|Signature|Unrecog", 3, "check `aws sts get-caller-identity`"),
    ("ProfileNotFound", 2, "`aws configure list-profiles` shows those that exist"),
    ("NoRegion|UnknownRegion", 2, "set AWS_DEFAULT_REGION or run `aws configure`"),
    ("AccessDenied|Forbidden|Unauthorized|^403$", 3, "`invoke role` prints the policy that it needs"),
    ("LimitExceeded|QuotaExceeded", 3, "free some, or ask for more in the Service Quotas console"),
    ("NoSuchBucket", 3, "`invoke package` uploads anew"),
    (BUSY, 3, "AWS is busy: repeat the command in a minute"),
    (NETWORK, 3, "check the network, the proxy and the Region"),
    (FAULT, 3, "AWS had a fault of its own: repeat the command"),
    ("Validation|InvalidParameter|InvalidInput", 2, "correct the setting"),
    ("", 3, "repeat the command, or remove what there is with `invoke destroy`"),
)
Failure = (CommandError, *AwsError)


@dataclass
class Aws:
    """Who asks, and where; `aws("s3")` is a boto3 client, made once."""

    session: Any
    region: str
    partition: str
    account: str
    caller: str  # the ARN of whose credentials these are
    clients: dict[str, Any] = field(default_factory=dict)

    def __call__(self, service: str) -> Any:
        """The service's client."""
        if service not in self.clients:
            self.clients[service] = self.session.client(service, config=config())
        return self.clients[service]


def config() -> Config:
    """Patience: throttling, AWS's own faults and cut connections are tried again, with growing pauses."""
    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", 6))
    retries = {"mode": "standard", "total_max_attempts": attempts}
    return Config(connect_timeout=10, read_timeout=70, retries=retries)  # an endpoint may think for 60 s


def connect() -> Aws:
    """The user's account. Raises Stop when there are no credentials or no Region, or what botocore raises."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise CommandError(3, f"no AWS credentials were found: {ADVICE[0][2]}")
    if not session.region_name:
        raise CommandError(2, f"no AWS Region is set: {ADVICE[5][2]}")
    partition = session.get_partition_for_region(session.region_name)
    who = session.client("sts", config=config()).get_caller_identity()
    return Aws(session, session.region_name, partition, who["Account"], who["Arn"])


def none_if_missing(call: Callable, **request: Any) -> dict | None:
    """The answer of a call; None where AWS says that there is no such thing."""
    try:
        return call(**request)
    except ClientError as error:
        if is_missing(error):
            return None
        raise


def none_if_denied(call: Callable, *arguments: Any) -> Any:
    """A call's answer; None where you may not ask, for what the user has not asked for either."""
    try:
        return call(*arguments)
    except ClientError as error:
        if is_denied(error):
            return None
        raise


def is_missing(error: Exception) -> bool:
    """Whether AWS said that there is no such thing. SageMaker says so with a ValidationException."""
    code, said = error_code(error), str(error)
    if code == "ValidationException":
        return bool(re.search(GONE, said))
    return bool(re.fullmatch(MISSING, code))


def already_exists(error: Exception) -> bool:
    """Whether AWS refused to make something because it exists, as after a repeated request."""
    return (
        bool(re.search("already exist", str(error), re.IGNORECASE))
        or error_code(error) == "ConflictException"
    )


def error_code(error: Exception) -> str:
    """AWS's error code, or the name of botocore's exception."""
    return error_response(error).get("Error", {}).get("Code") or type(error).__name__


def error_response(error: Exception) -> dict:
    """What AWS answered; nothing if it did not."""
    reply = getattr(error, "response", None)  # which botocore's connection errors have too, as None
    return reply if isinstance(reply, dict) else {}


def is_denied(error: Exception) -> bool:
    """Whether a permission is missing."""
    refused = re.search("AccessDenied|Unauthorized|Forbidden|^403$", error_code(error))
    return isinstance(error, ClientError) and bool(refused)


def is_transient(error: Exception) -> bool:
    """Whether the same call may well be answered a little later."""
    return bool(re.search(f"{BUSY}|{NETWORK}|{FAULT}", error_code(error)))


def is_not_ready_yet(error: Exception) -> bool:
    """Whether SageMaker calls invalid what is only at work now, or what AWS does not know of yet."""
    return bool(re.search("in-progress|while it is|Could not (find|access)|[Aa]ssume", str(error)))


def as_command_error(error: Exception) -> CommandError:
    """What botocore raised, as one sentence that says what to do; a Stop as it is."""
    if isinstance(error, CommandError):
        return error
    code, said = error_code(error), terminal_safe(" ".join(str(error).split())).rstrip(". ")
    again = r"(?: \(reached max retries: \d+\))?"
    said = re.sub(rf"^An error occurred \(.*?\) when calling the (\w+) operation{again}: ", r"\1: ", said)
    key = "" if code == "ValidationException" and is_not_ready_yet(error) else code
    exit_code, advice = next((number, text) for pattern, number, text in ADVICE if re.search(pattern, key))
    if is_denied(error):
        said = f"your AWS identity may not {denied_action(error)} ({said})"
    return CommandError(exit_code, f"{said}: {advice}")


def denied_action(error: Exception) -> str:
    """The action that was denied: as AWS names it, else from the operation's name."""
    named = re.search(r"not authorized to perform:? ([\w-]+:\w+)(?: on resource:? (\S+))?", str(error))
    if named:
        return named[1] + (f" on {named[2].rstrip('.')}" if named[2] else "")
    operation = getattr(error, "operation_name", "use this")
    return {"HeadObject": "s3:GetObject", "HeadBucket": "s3:ListBucket"}.get(operation, operation)


def run_command(body: Callable[[], int]) -> int:
    """Run a command: its exit code, and every error of AWS or the user's as one sentence."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.default_int_handler)  # as Ctrl-C
    try:
        return body()
    except Failure as error:
        stop = as_command_error(error)
        print(f"error: {terminal_safe(stop)}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here; `invoke destroy` removes all", file=sys.stderr)
        return 130


def list_all(client: Any, operation: str, key: str, **request: Any) -> list[dict]:
    """Every item under `key` of a paginated operation."""
    found = client.get_paginator(operation).paginate(**request)
    return [item for page in found for item in page.get(key, [])]


RETRY_PAUSES = (1, 2, 4, 8, 15, 30)  # seconds between tries; a new role needs some of them to be known
NOT_YET = "Could not (find|access)|assume"  # a role that is unknown cannot be assumed


def retry_until_consistent(call: Callable, **request: Any) -> dict | None:
    """The answer of a call that is repeated while AWS does not know what it is about.

    None where the call made its thing already, as after a repeated request.
    """
    for wait in (*RETRY_PAUSES, None):
        try:
            return call(**request)
        except ClientError as error:
            if already_exists(error):
                return None
            if wait is None or not is_inconsistent(error):
                raise
            time.sleep(wait)
    raise AssertionError


def is_inconsistent(error: ClientError) -> bool:
    """Whether AWS calls a request invalid that will soon be valid."""
    invalid = error_code(error) in ("ValidationException", "InvalidInputException")
    return invalid and bool(re.search(NOT_YET, str(error), re.IGNORECASE))
