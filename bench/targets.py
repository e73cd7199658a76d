"""The endpoints that endpoint.py loads: a plain server, or one on SageMaker. Nothing is tried twice."""

import json
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from stacks import BenchError

CONNECT_SECONDS = 5
TIMEOUT = 70  # seconds; SageMaker gives up after 60

HEADERS = {"Content-Type": "image/jpeg", "Accept": "application/json"}  # ours sees by itself what it is

Ask = Callable[[bytes], str | None]  # sends an encoded picture, and returns what went wrong


def over_http(url: str, connections: int) -> Ask:
    """Asks a plain server, with connections that are kept. Raises BenchError."""
    import requests

    if not re.match("https?://.", url, re.IGNORECASE):
        raise BenchError(f"an address starts with http:// or https://, not like {url!r}", 2)
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=connections))
    # A company's proxy cannot see this machine's own ports.
    session.trust_env = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
    url = url.rstrip("/").removesuffix("/invocations") + "/invocations"
    options = {"headers": HEADERS, "timeout": (CONNECT_SECONDS, TIMEOUT), "allow_redirects": False}

    def ask(body: bytes) -> str | None:
        try:
            reply = session.post(url, data=body, **options)
        except requests.Timeout:
            return "timeout"
        except requests.RequestException:
            return "unreachable"
        return problem(reply.status_code, reply.content)

    return ask


def on_sagemaker(name: str, connections: int) -> Ask:
    """Asks an endpoint on SageMaker. Raises BenchError if AWS is not set up here."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    seconds = {"connect_timeout": CONNECT_SECONDS, "read_timeout": TIMEOUT}
    config = Config(max_pool_connections=connections, retries={"total_max_attempts": 1}, **seconds)
    try:
        runtime = boto3.Session().client("sagemaker-runtime", config=config)
    except BotoCoreError as error:
        said = str(error).rstrip(".")
        raise BenchError(f"AWS is not set up here: {said}; run `aws configure`") from None
    kinds = {name.replace("-", ""): kind for name, kind in HEADERS.items()}

    def ask(body: bytes) -> str | None:
        try:
            reply = runtime.invoke_endpoint(EndpointName=name, Body=body, **kinds)
            return problem(200, reply["Body"].read())
        except ClientError as error:
            reply = error.response
            if reply["Error"]["Code"] == "ModelError":
                return problem(reply["OriginalStatusCode"], reply["OriginalMessage"].encode())
            return f"{reply['ResponseMetadata']['HTTPStatusCode']} {reply['Error']['Code']}"
        except BotoCoreError as error:
            return type(error).__name__  # such as ReadTimeoutError

    return ask


def problem(status: int, body: bytes) -> str | None:
    """None for an answer; else the status and the server's code, such as "503 busy"."""
    try:
        said = json.loads(body)
    except ValueError:
        return f"{status} unexpected"
    code = said.get("error") if isinstance(said, dict) else None
    return None if status == 200 and not code else f"{status} {code or 'unexpected'}"
