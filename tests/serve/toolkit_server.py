"""The handlers under AWS's own sagemaker-inference toolkit, in a process of their own."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TOOLKIT = "sagemaker-inference==1.10.1"
# What TorchServe does around the toolkit: a service object, and a context that lives as long as it does.
PROGRAM = """
import base64, json, sys
sys.path.insert(0, sys.argv[1] + "/code")
from sagemaker_inference.default_handler_service import DefaultHandlerService

class Context:
    system_properties = {"model_dir": sys.argv[1]}
    def __init__(self):
        self.request_processor = [self]
    def get_request_properties(self):
        return self.headers
    def set_response_content_type(self, index, value):
        self.content_type = value
    def set_response_status(self, code, phrase):
        self.status, self.phrase = code, phrase

service, context = DefaultHandlerService(), Context()
service.initialize(context)
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    context.headers, context.status, context.phrase, context.content_type = request["headers"], 200, "OK", ""
    (body,) = service.handle([{"body": bytearray(base64.b64decode(request["body"]))}], context)
    body = body.encode() if isinstance(body, str) else body
    answer = [context.status, context.phrase, context.content_type, base64.b64encode(body).decode()]
    print("answer", json.dumps(answer), flush=True)
"""

Ask = Callable[[bytes, dict[str, str]], tuple[int, str, str, bytes]]


def install(folder: Path) -> None:
    """Install the toolkit into a folder of its own; skips the test without a network."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--python",
        sys.executable,
        "--no-deps",
        "--quiet",
    ]
    done = subprocess.run([*command, "--target", str(folder), TOOLKIT], check=False)
    if done.returncode:
        pytest.skip("no network to install SageMaker's toolkit from")


@contextmanager
def running(model: Path, toolkit: Path) -> Iterator[Ask]:
    """A function that sends body and headers: status, phrase, content type and body of the answer."""
    command = [sys.executable, "-B", "-c", PROGRAM, str(model)]
    # Behind the packages of .venv: the toolkit's folder only adds what they lack.
    env, pipe = os.environ | {"PYTHONPATH": str(toolkit)}, subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, text=True) as process:
        assert process.stdin
        assert process.stdout
        lines = iter(process.stdout)

        def wait_for(word: str) -> str:
            return next(line for line in lines if line.startswith(word))  # the toolkit may print, too

        def ask(body: bytes, headers: dict[str, str]) -> tuple[int, str, str, bytes]:
            assert process.stdin
            request = {"headers": headers, "body": base64.b64encode(body).decode()}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            status, phrase, content_type, answer = json.loads(wait_for("answer").removeprefix("answer "))
            return status, phrase, content_type, base64.b64decode(answer)

        try:
            wait_for("ready")
            yield ask
        finally:
            process.kill()
