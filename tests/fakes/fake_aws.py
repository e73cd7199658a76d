"""A fake AWS account on this machine: moto, with fake_aws_answers.py in front of it.

The code under test gets its address and nothing else. Every call is counted by its AWS name, and each can be
made to fail, once or always: see FAULTS.
"""

import copy
import io
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

import fast_boto3
import moto_process
from aws import client, pricing, wait
from aws_protocol import name_of, refusal
from fake_aws_answers import ANSWERS, REGION, Problem
from lifecycle import smoke_test
from moto_process import KEYS
from support import interruptible

MAIN_THREAD = threading.main_thread().ident or 0
OWN = f"Credential={KEYS['aws_access_key_id']}/"
FAULTS = {  # the response to a call with a fault: status, AWS's code, message
    "throttle": (400, "ThrottlingException", "Rate exceeded"),
    "500": (500, "InternalFailure", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDeniedException", "User: arn:aws:iam::123456789012:user/me is not authorized"),
    "limit": (400, "ResourceLimitExceeded", "The account-level service limit is 0 Instances."),
    "expired": (400, "ExpiredTokenException", "The security token included in the request is expired"),
}  # and "cut": AWS does the work, then the connection is closed; "interrupt": SIGINT before the response


@dataclass
class Fault:
    """A fault to inject into a call, and how often."""

    call: str  # "" matches any
    kind: str
    times: float
    after: int = 0  # calls that succeed before


@dataclass
class FakeAccount:
    """An account. `answer(endpoint, headers, body)` is its containers' response: a status and bytes."""

    moto: moto_process.Moto
    url: str = ""
    calls: Counter = field(default_factory=Counter)
    injected: Counter = field(default_factory=Counter)  # (call, kind of fault)
    faults: list[Fault] = field(default_factory=list)
    outcomes: dict[str, tuple[str, str]] = field(
        default_factory=dict
    )  # status, reason; by configuration or "any"
    transitions: dict[str, list] = field(
        default_factory=dict
    )  # status, polls left, outcome, reason; by endpoint
    polls: int = 1  # DescribeEndpoint calls until a transition ends
    updates: list[dict] = field(default_factory=list)
    quotas: dict[str, float] = field(default_factory=dict)
    denied_actions: set[str] = field(default_factory=set)  # in IAM's policy simulator
    percentiles: dict[str, float] = field(default_factory=dict)  # "ModelLatency p99": microseconds
    job_outcome: tuple[str, str] = ("Completed", "")  # of batch transform jobs
    answer: Callable = lambda endpoint, headers, body: (503, b"there is no container")
    clients: dict = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a user of this account."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str, region: str = REGION) -> Any:
        """A boto3 client for the test itself, whose calls are neither counted nor made to fail."""
        if (service, region) not in self.clients:
            self.clients[service, region] = fast_boto3.SESSION.client(
                service, region, endpoint_url=self.url, **KEYS
            )
        return self.clients[service, region]

    def outcome_of(self, config: str) -> tuple[str, str] | None:
        """The status and reason in which an endpoint with this configuration ends, if a test has set one."""
        return self.outcomes.get(config) or self.outcomes.get("any")

    def break_(self, call: str, kind: str, times: float = float("inf"), after: int = 0) -> None:
        """Inject a fault into a call ("sagemaker:CreateModel") so many times."""
        self.faults.append(Fault(call, kind, times, after))

    def fault_of(self, call: str) -> Fault | None:
        """The fault of this call, if it has one."""
        fault = next((one for one in self.faults if one.call in ("", call) and one.times > 0), None)
        if fault and fault.after > 0:
            fault.after -= 1
            return None
        if fault:
            fault.times -= 1
            self.injected[call, fault.kind] += 1
        return fault

    def resources(self) -> list[str]:
        """Every resource in the account as AWS lists it, except roles and S3 objects."""
        sagemaker, scaler = self.client("sagemaker"), self.client("application-autoscaling")
        found = [f"endpoint {one['EndpointName']}" for one in sagemaker.list_endpoints()["Endpoints"]]
        configs = sagemaker.list_endpoint_configs()["EndpointConfigs"]
        found += [f"config {one['EndpointConfigName']}" for one in configs]
        found += [f"model {one['ModelName']}" for one in sagemaker.list_models()["Models"]]
        targets = scaler.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        found += [f"scaling {one['ResourceId']}" for one in targets]
        policies = scaler.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
        found += [f"policy {one['PolicyName']}" for one in policies]
        schedules = self.client("scheduler").list_schedules()["Schedules"]
        found += [f"schedule {one['Name']}" for one in schedules]
        alarms = self.client("cloudwatch").describe_alarms()["MetricAlarms"]
        return found + [f"alarm {one['AlarmName']}" for one in alarms]

    def objects(self) -> list[str]:
        """Every object in every bucket, and every unfinished multipart upload."""
        s3 = self.client("s3")
        return [
            f"s3://{bucket['Name']}/{one['Key']}"
            for bucket in s3.list_buckets()["Buckets"]
            for one in s3.list_objects_v2(Bucket=bucket["Name"]).get("Contents", [])
            + s3.list_multipart_uploads(Bucket=bucket["Name"]).get("Uploads", [])
        ]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """WSGI: count the call, apply its fault if it has one, answer it here or pass it to moto."""
        request = Request(environ)
        body = request.get_data()
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        call = name_of(request, body)
        fault = None
        if OWN not in request.headers.get("Authorization", ""):
            self.calls[call] += 1
            fault = self.fault_of(call)
        if fault and fault.kind in FAULTS:
            return refusal(request, call, *FAULTS[fault.kind])(environ, start_response)
        reply = self.stand_in(request, call, body) or Response.from_app(self.moto, environ)
        if fault and fault.kind == "interrupt":  # once AWS has done the work, so that no test races with it
            signal.pthread_kill(MAIN_THREAD, signal.SIGINT)
        if fault and fault.kind == "cut":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return reply(environ, start_response)

    def stand_in(self, request: Request, call: str, body: bytes) -> Response | None:
        """The response to a call that moto does not implement, or not as AWS does."""
        if call not in ANSWERS:
            return None
        given = json.loads(body) if body[:1] == b"{" and "X-Amz-Target" in request.headers else {}
        reply = ANSWERS[call](self, request, given)
        if isinstance(reply, Problem):
            return refusal(request, call, 400, reply.code, str(reply))
        if isinstance(reply, dict):
            return Response(json.dumps(reply), content_type="application/x-amz-json-1.1")
        return reply


@dataclass
class Snapshot:
    """An account as a preparation left it, with the files that this wrote."""

    moto: moto_process.Moto
    state: dict[str, Any]
    files: dict[Path, bytes]


SNAPSHOTS: dict[str, Snapshot] = {}
STATE = ("calls", "job_outcome", "outcomes", "transitions", "updates")


def prepare(cloud: FakeAccount, name: str, make: Callable[[], object], folder: Path) -> None:
    """Bring an empty account and a project's folder to where `make` brings them.

    It runs once in this process. Whoever gives the same name later gets a copy of the result.
    """
    assert not cloud.calls
    if name not in SNAPSHOTS:
        make()
        state = {key: copy.deepcopy(getattr(cloud, key)) for key in STATE}
        files = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        SNAPSHOTS[name] = Snapshot(cloud.moto.fork(), state, files)
        return
    snapshot = SNAPSHOTS[name]
    cloud.moto.close()
    cloud.moto = snapshot.moto.fork()
    for key, value in snapshot.state.items():
        setattr(cloud, key, copy.deepcopy(value))
    for file, content in snapshot.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


@contextmanager
def running() -> Iterator[FakeAccount]:
    """An empty account, until the block ends."""
    cloud = FakeAccount(moto_process.empty().fork())
    server = make_server("127.0.0.1", 0, cloud, threaded=True, request_handler=Quiet)
    cloud.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        cloud.moto.close()


class Quiet(WSGIRequestHandler):
    """With the headers as they were sent, for moto; without a line per request."""

    def make_environ(self) -> dict:
        return super().make_environ() | {moto_process.HEADERS: self.headers.items()}

    def log(self, *args: object) -> None:
        pass


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has no AWS credentials."""
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextmanager
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAccount]:
    """A fake account that is AWS for this process; waiting takes no time and retries are few."""
    without_credentials(monkeypatch)
    with running() as cloud:
        for key, value in cloud.environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        fast_boto3.install(monkeypatch)
        monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
        monkeypatch.setattr(wait, "PAUSES", (0.01,))
        monkeypatch.setattr(smoke_test, "PAUSE", 0.01)
        monkeypatch.setattr(pricing, "ESTIMATE", os.devnull)
        monkeypatch.setattr(client, "RETRY_PAUSES", (0.01,))
        with interruptible():
            yield cloud


def build(folder: Path, archive: bytes = b"one") -> None:
    """A build/<project> folder with what deploy reads: an archive and two validation pictures."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "model.tar.gz").write_bytes(archive)
    entries = []
    for label, confidence in (("cat", 0.95), ("dog", 0.6)):
        (folder / "train" / f"{label}.jpg").write_bytes(b"\xff\xd8\xff" + label.encode())
        said = {"labels": [label], "predicted": [label], "confidence": confidence}
        entries.append({"file": f"{label}.jpg", **said})
    (folder / "train" / "validation.json").write_text(json.dumps(entries))


def correct_container(endpoint: Any, headers: Any, body: bytes) -> tuple[int, bytes]:
    """A container that classifies those pictures correctly."""
    label = body[3:].decode()
    return 200, json.dumps({"class": label, "confidence": 0.95, "predictions": []}).encode()
