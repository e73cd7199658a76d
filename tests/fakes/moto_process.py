"""moto in a process of its own, one for each test process: started once, emptied between tests.

moto is not imported by the tests: its threads beside torch's ended in a segmentation fault once.
"""

import atexit
import functools
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from werkzeug.wrappers import Request, Response

HEADERS = "fake_aws.headers"  # the request's headers as they were sent, in the WSGI environ
HOP_BY_HOP = {"connection", "content-length", "date", "expect", "server", "transfer-encoding"}
SECONDS = 60


class Moto:
    """The process's address, as a WSGI application that hands requests on to it."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("moto_server.py")
        # Our own stdin and AWS settings are not moto's: its end of the pipe tells it that we are gone.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, script], env=environment, **pipes)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        atexit.register(self.close)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def reset(self) -> None:
        """Empty the account."""
        self.send("POST", "/moto-api/reset")

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
def _started(process: int) -> Moto:
    return Moto()


def shared() -> Moto:
    """This process's moto, with whatever is in it; started again if it died."""
    moto = _started(os.getpid())
    if moto.process.poll() is not None:
        _started.cache_clear()
        moto = _started(os.getpid())
    return moto
