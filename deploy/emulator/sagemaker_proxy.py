"""A proxy on loopback that stands in for SageMaker's endpoint and its runtime API.

/ping and /invocations are forwarded as SageMaker forwards them. /endpoints/NAME/invocations, for any NAME, is
the runtime API: a container's error comes back as ModelError, so that boto3 raises the same as on AWS.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio.to_thread
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Ray's paths are those to which the adapter in AWS's Ray container forwards.
PATHS = {"plain": ("/ping", "/invocations"), "ray": ("/-/healthz", "/")}
INVOCATION_SECONDS = 60  # SageMaker's limit for InvokeEndpoint
PING_SECONDS = 2  # SageMaker's limit for a health check


@contextmanager
def proxy(listener: socket.socket, backend: str, stack: str) -> Iterator[None]:
    """Serve on `listener`, from a thread, the proxy for the server at `backend`."""
    config = uvicorn.Config(application(backend, stack), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def application(backend: str, stack: str) -> Starlette:
    """The ASGI application that forwards requests to the container's server."""
    ping_path, invocations_path = PATHS[stack]
    ping_threads = anyio.CapacityLimiter(4)  # of its own: a health check must not wait behind pictures

    async def ping(request: Request) -> Response:
        url = backend + ping_path
        reply = await anyio.to_thread.run_sync(forward, "GET", url, PING_SECONDS, limiter=ping_threads)
        return Response(status_code=reply[0])

    async def invocations(request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if is_forwarded(name)}
        status, headers, body = await run_in_threadpool(
            forward, "POST", backend + invocations_path, INVOCATION_SECONDS, await request.body(), headers
        )
        if "name" in request.path_params and status != 200:
            status, headers, body = model_error(status, body)
        return Response(body, status, headers)

    return Starlette(
        routes=[
            Route("/ping", ping),
            Route("/invocations", invocations, methods=["POST"]),
            Route("/endpoints/{name}/invocations", invocations, methods=["POST"]),
        ]
    )


def is_forwarded(header: str) -> bool:
    """Whether SageMaker passes a header on; it strips all others."""
    header = header.lower()
    return header in ("content-type", "accept") or header.startswith("x-amzn-sagemaker-")


def forward(
    method: str, url: str, seconds: float, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """The container's status, forwarded headers and body; 503 or 504 if it did not respond."""
    try:
        with requests.Session() as session:
            session.trust_env = False  # a company's proxy cannot reach this machine's loopback
            response = session.request(method, url, data=body, headers=headers, timeout=seconds)
    except requests.Timeout:
        return 504, {}, b"the container did not respond in time"
    except requests.RequestException:
        return 503, {}, b"the container does not accept connections"
    forwarded = {name: value for name, value in response.headers.items() if is_forwarded(name)}
    return response.status_code, forwarded, response.content


def model_error(status: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """A container's error as the runtime API returns it (botocore: sagemaker-runtime, ModelError)."""
    original = body.decode(errors="replace")[:2048]
    side = "client" if status < 500 else "server"
    error = {
        "Message": f'Received {side} error ({status}) from primary with message "{original}".'[:2048],
        "OriginalStatusCode": status,
        "OriginalMessage": original,
        "LogStreamArn": "",
    }
    headers = {"content-type": "application/json", "x-amzn-errortype": "ModelError"}
    return 424, headers, json.dumps(error).encode()
