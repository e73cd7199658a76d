"""A real HTTP server whose responses are scripted: what the tests of the client connect to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

ANSWER = {
    "class": "cat",
    "confidence": 0.9,
    "predictions": [{"class": "cat", "confidence": 0.9}, {"class": "dog", "confidence": 0.1}],
}


def reply(
    status: int = 200, body: dict | str = ANSWER, wait: float = 0, *, cut: bool = False, **headers: Any
) -> SimpleNamespace:
    """One step of a script: after `wait` seconds send this, or close the connection instead (`cut`)."""
    text = json.dumps(body) if isinstance(body, dict) else body
    return SimpleNamespace(status=status, body=text.encode(), wait=wait, cut=cut, headers=headers)


def model_error(status: int, body: dict | str) -> SimpleNamespace:
    """How SageMaker passes on a container's error: 424, the type in a header, the original inside."""
    original = body if isinstance(body, str) else json.dumps(body)
    said = (
        f'Received client error ({status}) from primary with message "{original}". See https://... for more.'
    )
    arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/sagemaker/Endpoints/pets"
    wrapped = {
        "Message": said,
        "OriginalMessage": original,
        "OriginalStatusCode": status,
        "LogStreamArn": arn,
    }
    return reply(424, wrapped, x_amzn_errortype="ModelError")


def aws_error(status: int, code: str, message: str) -> SimpleNamespace:
    """An error of AWS itself."""
    return reply(status, {"message": message}, x_amzn_errortype=f"{code}:http://internal.amazon.com/")


class Server(ThreadingHTTPServer):
    """Silent about clients that gave up waiting."""

    def handle_error(self, *args: object) -> None:
        pass


@contextmanager
def scripted(
    *steps: SimpleNamespace, answer: Callable[[bytes], SimpleNamespace] | None = None
) -> Iterator[SimpleNamespace]:
    """Serve `steps` in turn, then the last one for ever; or `answer(body)`. Yields url and requests."""
    requests: list[SimpleNamespace] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(
                SimpleNamespace(path=self.path, headers=self.headers, body=body, at=time.monotonic())
            )
            step = answer(body) if answer else steps[min(len(requests), len(steps)) - 1]
            time.sleep(step.wait)
            if step.cut:
                self.close_connection = True
                return
            self.send_response(step.status)
            for name, value in {"Content-Type": "application/json", **step.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(step.body)))
            self.end_headers()
            self.wfile.write(step.body)

        def log_message(self, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", requests=requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
