"""moto in processes of its own: each test process starts one, and forks it for each account that it needs.

The tests do not import moto: a fork starts with the state of a prepared account, and no thread of moto's runs
beside the libraries that are tested.
"""

import atexit
import contextlib
import functools
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from werkzeug.wrappers import Request, Response

from fast_boto3 import SESSION

HEADERS = "fake_aws.headers"  # the request's headers as they were sent, in the WSGI environ
HOP_BY_HOP = {"connection", "content-length", "date", "expect", "server", "transfer-encoding"}
SECONDS = 60
REGION = "eu-west-1"
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
FIRST_CALLS: dict[
    str, tuple[str, dict[str, str]]
] = {  # moto loads a service at its first call: before it is forked
    "application-autoscaling": ("describe_scalable_targets", {"ServiceNamespace": "sagemaker"}),
    "cloudwatch": ("describe_alarms", {}),
    "codebuild": ("list_projects", {}),
    "ecr": ("describe_repositories", {}),
    "iam": ("list_roles", {}),
    "logs": ("describe_log_groups", {}),
    "s3": ("list_buckets", {}),
    "sagemaker": ("list_endpoints", {}),
    "scheduler": ("list_schedules", {}),
    "sts": ("get_caller_identity", {}),
}


class Moto:
    """An account in a process of its own, as a WSGI application that hands requests on to it."""

    def __init__(self, port: int, process: int) -> None:
        self.port, self.process = port, process
        self.url = f"http://127.0.0.1:{port}"

    def fork(self) -> "Moto":
        """Another process, whose account has the same contents."""
        return Moto(**self.call("fork"))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    def send(
        self, method: str, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        """Moto's response to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.putrequest(method, target, skip_host=bool(headers), skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            length = [("Content-Length", reply.headers["Content-Length"])] if method == "HEAD" else []
            kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in HOP_BY_HOP]
            return Response([reply.read()], reply.status, kept + [pair for pair in length if pair[1]])
        finally:
            connection.close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """WSGI: hand a request on to moto."""
        body = Request(environ).get_data()
        reply = self.send(environ["REQUEST_METHOD"], environ["RAW_URI"], body, environ[HEADERS])
        return reply(environ, start_response)

    def call(self, function: str, **arguments: Any) -> Any:
        """Call one of moto_server.FUNCTIONS; what it returns."""
        reply = self.send("POST", f"/fake-aws/{function}", json.dumps(arguments).encode())
        assert reply.status_code == 200, reply.get_data(as_text=True)
        return json.loads(reply.get_data())

    def sagemaker(self) -> SimpleNamespace:
        """What SageMaker has now: models (names), configs, endpoints and jobs, by name, as objects."""
        state = self.call("sagemaker_state")
        kinds = ("configs", "endpoints", "jobs")
        found = {kind: {name: SimpleNamespace(**one) for name, one in state[kind].items()} for kind in kinds}
        return SimpleNamespace(models=state["models"], **found)


@functools.cache
def empty() -> Moto:
    """An empty account: the process that all others are forked from."""
    script = Path(__file__).with_name("moto_server.py")
    # The AWS settings of whoever runs the tests are not moto's; its end of the pipe says when we are gone.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(end, process)
    assert process.stdout is not None
    moto = Moto(int(process.stdout.readline()), process.pid)
    for service, (operation, request) in FIRST_CALLS.items():  # so that no fork has to load it again
        getattr(SESSION.client(service, REGION, endpoint_url=moto.url, **KEYS), operation)(**request)
    return moto


def end(process: subprocess.Popen[bytes]) -> None:
    """End the first process and, as they read the same stdin, all others."""
    process.kill()
    process.communicate()
