"""The clients with which load.py sends requests: to a plain server, or to SageMaker. Neither retries."""

import json
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from servers import BenchError

CONNECT_SECONDS = 5
TIMEOUT = 70  # seconds; SageMaker gives up after 60

# The server recognises the format by itself, so that one header is right for all pictures.
HEADERS = {"Content-Type": "image/jpeg", "Accept": "application/json"}

Send = Callable[[bytes], str | None]  # sends an encoded picture; returns what went wrong, None for an answer


def http_client(url: str, connections: int) -> Send:
    """A client of a plain server that keeps up to `connections` open. Raises BenchError."""
    import requests

    if not re.match("https?://.", url, re.IGNORECASE):
        raise BenchError(f"an address starts with http:// or https://, not like {url!r}", 2)
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=connections))
    # HTTP_PROXY would send requests for this machine's own ports to a company's proxy, which cannot see them.
    session.trust_env = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
    url = url.rstrip("/").removesuffix("/invocations") + "/invocations"
    seconds = (CONNECT_SECONDS, TIMEOUT)

    def send(body: bytes) -> str | None:
        try:
            response = session.post(url, body, headers=HEADERS, timeout=seconds, allow_redirects=False)
        except requests.Timeout:
            return "timeout"
        except requests.RequestException:
            return "unreachable"
        return problem(response.status_code, response.content)

    return send


def sagemaker_client(name: str, connections: int) -> Send:
    """A client of an endpoint on SageMaker. Raises BenchError if AWS is not set up on this machine."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    seconds = {"connect_timeout": CONNECT_SECONDS, "read_timeout": TIMEOUT}
    config = Config(max_pool_connections=connections, retries={"total_max_attempts": 1}, **seconds)
    try:
        runtime = boto3.Session().client("sagemaker-runtime", config=config)
    except BotoCoreError as error:
        reason = str(error).rstrip(".")
        raise BenchError(f"AWS is not set up here: {reason}; run `aws configure`") from None
    types = {
        header.replace("-", ""): value for header, value in HEADERS.items()
    }  # boto3: ContentType, Accept

    def send(body: bytes) -> str | None:
        try:
            response = runtime.invoke_endpoint(EndpointName=name, Body=body, **types)
            return problem(200, response["Body"].read())
        except ClientError as error:
            response = error.response
            if response["Error"]["Code"] == "ModelError":  # the container's answer, wrapped by SageMaker
                return problem(response["OriginalStatusCode"], response["OriginalMessage"].encode())
            return f"{response['ResponseMetadata']['HTTPStatusCode']} {response['Error']['Code']}"
        except BotoCoreError as error:
            return type(error).__name__  # such as ReadTimeoutError

    return send


def problem(status: int, body: bytes) -> str | None:
    """None for an answer of any task; else the status and the server's code, such as "503 busy"."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):  # RecursionError: a million brackets
        content = None
    if not isinstance(content, dict):
        return f"{status} unexpected"
    code = content.get("error")
    return None if status == 200 and not code else f"{status} {code or 'unexpected'}"
