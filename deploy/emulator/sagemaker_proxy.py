"""SageMaker's place before a container, on loopback: what its endpoint and its runtime API do to HTTP.

/ping and /invocations go through as SageMaker hands them on. /endpoints/NAME/invocations, for any NAME, is
the runtime's API: a container's error comes back as ModelError, so that boto3 raises what it would on AWS.
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

PATHS = {"plain": ("/ping", "/invocations"), "ray": ("/-/healthz", "/")}  # Ray's: as AWS's adapter asks it
INVOCATION_SECONDS = 60  # SageMaker's own limit
PING_SECONDS = 2  # likewise


@contextmanager
def proxy(listener: socket.socket, backend: str, stack: str) -> Iterator[None]:
    """Serve `application` on `listener` from a thread."""
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
    """The ASGI application that hands requests on to the container's process."""
    ping_path, invocations_path = PATHS[stack]
    pings = anyio.CapacityLimiter(4)

    async def ping(request: Request) -> Response:
        # With threads of its own: a health check must not queue behind pictures.
        reply = await anyio.to_thread.run_sync(
            forward, "GET", backend + ping_path, PING_SECONDS, limiter=pings
        )
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
    """SageMaker strips all other headers."""
    header = header.lower()
    return header in ("content-type", "accept") or header.startswith("x-amzn-sagemaker-")


def forward(
    method: str, url: str, seconds: float, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """The container's answer: status, the headers that are passed on, body; 503 or 504 if there is none."""
    try:
        with requests.Session() as session:
            session.trust_env = False  # a company's proxy cannot reach this machine's own ports
            answer = session.request(method, url, data=body, headers=headers, timeout=seconds)
    except requests.Timeout:
        return 504, {}, b"the container did not answer in time"
    except requests.RequestException:
        return 503, {}, b"the container does not listen"
    passed_on = {name: value for name, value in answer.headers.items() if is_forwarded(name)}
    return answer.status_code, passed_on, answer.content


def model_error(status: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """An error of the container as SageMaker's runtime words it (botocore: sagemaker-runtime, ModelError)."""
    original = body.decode(errors="replace")[:2048]
    side = "client" if status < 500 else "server"
    error = {
        "Message": f'Received {side} error ({status}) from primary with message "{original}".'[:2048],
        "OriginalStatusCode": status,
        "OriginalMessage": original,
        "LogStreamArn": "",
    }
    return (
        424,
        {"content-type": "application/json", "x-amzn-errortype": "ModelError"},
        json.dumps(error).encode(),
    )
