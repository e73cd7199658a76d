"""Load over real HTTP: right answers, bounded memory and queue, and a stop that loses no request."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import random
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import requests
import yaml
from PIL import Image
from plain_server import (
    WAIT_SECONDS,
    a_picture,
    expecting,
    gated_predict,
    in_thread,
    running,
    wait_for_ping,
)

import inference
import server
from support import Endpoint

SIZE = 1000  # pixels a side, of noise: a body of 0.8 MB, 3 MB when it is decoded
every_core = pytest.mark.xdist_group("load")  # of pytest-xdist: never two of them at the same time


class Query(NamedTuple):
    """A request and its expected answer: a status and a code, or the same as without load."""

    body: bytes
    headers: dict[str, str]
    status: int = 200
    code: str = ""

    def send(self, url: str, path: str = "/invocations") -> requests.Response:
        return requests.post(url + path, self.body, headers=self.headers, timeout=120)


@pytest.fixture(scope="module")
def model(project: Path) -> inference.Model:
    return inference.model_fn(project / "model")


@pytest.fixture
def url(model: inference.Model) -> Iterator[str]:
    """The server in a thread of this process."""
    with in_thread(model) as url:
        yield url


def encode(picture: Image.Image, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def good_queries(project: Path) -> list[Query]:
    """Pictures of the project and of noise, in every kind of body."""
    noise = np.random.default_rng(0).integers(0, 255, (12, SIZE, SIZE, 3), np.uint8)
    pictures = [file.read_bytes() for file in sorted((project / "train" / "pictures").iterdir())[:4]]
    pictures += [encode(Image.fromarray(array)) for array in noise]
    queries = [Query(picture, {"Content-Type": "image/jpeg"}) for picture in pictures]
    both = [{"image": base64.b64encode(picture).decode()} for picture in (pictures[0], pictures[-1])]
    queries.append(Query(json.dumps({"instances": both}).encode(), {"Content-Type": "application/json"}))
    out = io.BytesIO()
    np.save(out, noise[:2, :300])
    queries.append(
        Query(out.getvalue(), {"Content-Type": "application/x-npy", "Accept": "application/jsonlines"})
    )
    return queries


def bad_queries(picture: bytes, rng: random.Random) -> list[Query]:
    """One request for every error that a body or a header can cause."""
    jpeg, text = {"Content-Type": "image/jpeg"}, {"Content-Type": "application/json"}
    inside = json.dumps({"url": "http://169.254.169.254/latest"}).encode()
    junk = json.dumps({"image": base64.b64encode(rng.randbytes(300)).decode()}).encode()
    return [
        Query(picture[: rng.randrange(200, len(picture) * 2 // 3)], jpeg, 400, "not_a_picture"),
        Query(rng.randbytes(rng.randrange(50_000)), jpeg, 400, "not_a_picture"),
        Query(b"", jpeg, 400, "not_a_picture"),
        Query(rng.randbytes(1000), {"Content-Type": "application/x-npy"}, 400, "not_a_picture"),
        Query(b'{"image": ', text, 400, "bad_json"),
        Query(picture, jpeg | {"Accept": "text/html"}, 406, "not_acceptable"),
        Query(encode(Image.new("1", (10_000, 5_001)), "PNG"), jpeg, 413, "too_large"),
        Query(bytes(25_000_001), jpeg, 413, "too_large"),
        Query(picture, {"Content-Type": "text/plain"}, 415, "unsupported_type"),
        Query(b'{"instances": []}', text, 422, "no_picture"),
        Query(junk, text, 422, "not_a_picture"),
        Query(inside, text, 422, "address_refused"),
        Query(picture, jpeg | {"X-Amzn-SageMaker-Custom-Attributes": "top_k=0"}, 422, "bad_top_k"),
    ]


def mixed(project: Path, count: int) -> list[Query]:
    """Good requests with bad ones at random between them, every third; the seed fixes the order."""
    rng, good = random.Random(0), good_queries(project)
    picture = good[-3].body
    bad = [query for _ in range(count) for query in bad_queries(picture, rng)][: count // 3]
    queries = [good[i % len(good)] for i in range(count - len(bad))] + bad
    rng.shuffle(queries)
    return queries


def check_all(url: str, queries: list[Query], alone: dict[bytes, str], at_once: int) -> None:
    """Every good request gets the answer that it gets alone, every bad one its own error."""
    with ThreadPoolExecutor(at_once) as pool:
        for query, reply in zip(queries, pool.map(lambda query: query.send(url), queries), strict=True):
            assert reply.status_code == query.status, reply.text
            if query.status == 200:
                assert reply.text == alone[query.body]
            else:
                assert reply.json()["error"] == query.code


def answers_alone(url: str, queries: list[Query]) -> dict[bytes, str]:
    """The answer to each good request without load."""
    return {query.body: query.send(url).text for query in queries if query.status == 200}


@every_core
def test_good_requests_between_bad_ones_get_right_answers_in_bounded_memory(project):
    queries = mixed(project, 200)
    with running(project / "model") as plain:
        wait_for_ping(plain.url, 200)
        alone = answers_alone(plain.url, good_queries(project))
        check_all(plain.url, queries[:100], alone, at_once=32)
        process = psutil.Process(plain.process.pid)
        before = process.memory_info().rss
        for _ in range(5):
            check_all(plain.url, queries[100:], alone, at_once=32)
        growth = process.memory_info().rss - before
    bodies = 5 * sum(
        len(query.body) for query in queries[100:] if query.status == 200
    )  # their pixels are far more
    assert bodies > 150e6
    assert growth < bodies / 2


@pytest.mark.xdist_group("ray")
def test_good_requests_between_bad_ones_get_right_answers_from_ray(ray_endpoint, project):
    queries = mixed(project, 60)
    check_all(ray_endpoint.url, queries, answers_alone(ray_endpoint.url, good_queries(project)), at_once=32)


def test_a_far_too_large_body_is_rejected_and_its_connection_stays_usable(url, project):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    for body, status in [(bytes(200 * 10**6), 413), (a_picture(project), 200)]:
        connection.request("POST", "/invocations", body)
        reply = connection.getresponse()
        assert reply.status == status, reply.read()
        assert reply.read()
    connection.close()


# --- the queue


def burst(pool: ThreadPoolExecutor, query: Query, url: str, count: int, refused: int) -> list[Future]:
    """Send `count` at once, wait until `refused` of them got 503, and return those in flight."""
    sent = {pool.submit(query.send, url) for _ in range(count)}
    done: set[Future] = set()
    while len(done) < refused:
        more = wait(sent - done, WAIT_SECONDS, FIRST_COMPLETED).done
        assert more, f"only {len(done)} of {refused} were refused"
        done |= more
    for reply in [future.result() for future in done]:
        assert (reply.status_code, reply.json()["error"]) == (503, "busy"), reply.text
        assert reply.headers["Retry-After"] == "1"
    return list(sent - done)


@every_core
def test_a_burst_over_the_bound_gets_503_and_the_others_are_answered(url, project, monkeypatch):
    _, gate = gated_predict(monkeypatch)
    slots, query = server.REQUEST_SLOTS, Query(a_picture(project), {})
    with ThreadPoolExecutor(slots + 20) as pool:
        queued = burst(pool, query, url, slots + 20, refused=20)
        assert requests.get(f"{url}/ping", timeout=5).status_code == 200
        assert not any(future.done() for future in queued)
        gate.set()
        assert {future.result().status_code for future in queued} == {200}
    assert query.send(url).status_code == 200


@every_core
def test_requests_that_fetch_addresses_leave_room_for_pictures(url, project, monkeypatch):
    gate, picture = threading.Event(), a_picture(project)

    def fetch(url: str, deadline: float) -> bytes:
        assert gate.wait(WAIT_SECONDS)
        return picture

    monkeypatch.setattr(inference, "fetch", fetch)
    monkeypatch.setattr(inference, "FETCH_SECONDS", 120)
    slots = inference.FETCH_SLOTS
    address = Query(b'{"url": "http://example.com/cat.jpg"}', {"Content-Type": "application/json"})
    with ThreadPoolExecutor(slots + 32) as pool:
        fetching = burst(pool, address, url, slots + 4, refused=4)
        replies = pool.map(lambda _: Query(picture, {}).send(url), range(32))
        assert {reply.status_code for reply in replies} == {200}
        assert not any(future.done() for future in fetching)
        gate.set()
        assert {future.result().status_code for future in fetching} == {200}
    assert address.send(url).status_code == 200


def test_bodies_that_are_not_received_are_408_and_release_their_slot(model, project, monkeypatch):
    monkeypatch.setattr(server, "request_slots", asyncio.Semaphore(2))
    monkeypatch.setattr(server, "BODY_SECONDS", 0.5)
    with in_thread(model) as url:
        for _ in range(3):
            with expecting(url, 1000) as caller:
                caller.sendall(b"x")  # one byte of the 1,000
                reply = http.client.HTTPResponse(caller)
                reply.begin()
                assert (reply.status, json.loads(reply.read())["error"]) == (408, "slow_body")
                assert caller.recv(1) == b""  # closed
        for _ in range(3):
            with expecting(url, 1000):  # a client that hangs up
                pass
            wait_until_free(server.request_slots)
        assert Query(a_picture(project), {}).send(url).status_code == 200


def test_slow_bodies_leave_room_for_quick_ones(model, project, monkeypatch):
    monkeypatch.setattr(server, "request_slots", asyncio.Semaphore(4))
    monkeypatch.setattr(server, "slow_slots", asyncio.Semaphore(2))
    monkeypatch.setattr(server, "QUICK_SECONDS", 0.2)
    picture = a_picture(project)
    with in_thread(model) as url, contextlib.ExitStack() as open_callers:
        callers = [open_callers.enter_context(expecting(url, len(picture))) for _ in range(4)]
        refused, _, _ = select.select(callers, [], [], WAIT_SECONDS)
        while len(refused) < 2:
            refused, _, _ = select.select(callers, [], [], WAIT_SECONDS)
        for caller in refused:
            reply = http.client.HTTPResponse(caller)
            reply.begin()
            assert (reply.status, json.loads(reply.read())["error"]) == (503, "busy")
            assert reply.headers["Retry-After"] == "1"
            assert caller.recv(1) == b""  # closed
        assert Query(picture, {}).send(url).status_code == 200
        for caller in set(callers) - set(refused):
            caller.sendall(picture)
            reply = http.client.HTTPResponse(caller)
            reply.begin()
            assert reply.status == 200


def wait_until_free(slots: asyncio.Semaphore) -> None:
    """Wait until a semaphore has a free slot: the server has noticed that the client hung up."""
    deadline = time.monotonic() + WAIT_SECONDS
    while slots.locked():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.xdist_group("ray")
def test_a_burst_over_the_bound_gets_503_from_ray(ray_endpoint):
    """Straight to Ray's own port: the stand-in for SageMaker would not let so many through."""
    picture, address = a_picture(ray_endpoint.project), ray_address(ray_endpoint)
    count = server.REQUEST_SLOTS + 8
    callers = [http.client.HTTPConnection(address, timeout=WAIT_SECONDS) for _ in range(count)]
    for caller in callers:  # some hold their slot as long as most of the body is missing
        caller.putrequest("POST", "/")
        caller.putheader("Content-Length", str(len(picture)))
        caller.endheaders(picture[:100])
    waiting = {caller.sock: caller for caller in callers}
    for _ in range(count - server.SLOW_SLOTS):
        readable, _, _ = select.select(list(waiting), [], [], WAIT_SECONDS)
        reply = waiting.pop(readable[0]).getresponse()
        assert (reply.status, json.loads(reply.read())["error"]) == (503, "busy")
        assert reply.headers["Retry-After"] == "1"
    for caller in waiting.values():
        caller.send(picture[100:])
    assert {caller.getresponse().status for caller in waiting.values()} == {200}
    for caller in callers:
        caller.close()


def ray_address(endpoint: Endpoint) -> str:
    """Ray's own address, from the configuration that local.py wrote for it."""
    for child in psutil.Process(endpoint.process.pid).children():
        options = yaml.safe_load(Path(child.cmdline()[-1]).read_text())["http_options"]
        return f"{options['host']}:{options['port']}"
    raise AssertionError("Ray is not running")


# --- stopping


def query_until_refused(url: str, picture: bytes, stopping: threading.Event) -> list[int | str]:
    """Send requests on one connection, on a new one when an answer closes it, until a connection is refused.

    Returns the statuses, and "lost" for a request that began before `stopping` or was sent on an open
    connection.
    """
    outcomes: list[int | str] = []
    address, connection = url.removeprefix("http://"), None
    while True:
        new, late = connection is None, stopping.is_set()
        try:
            connection = connection or http.client.HTTPConnection(address, timeout=60)
            connection.request("POST", "/invocations", picture)
            reply = connection.getresponse()
            reply.read()
        except OSError:
            return outcomes if new and late else [*outcomes, "lost"]
        outcomes.append(reply.status)
        if reply.will_close:
            connection.close()
            connection = None


@every_core
def test_sigterm_under_load_loses_no_request(project):
    stopping, picture = threading.Event(), a_picture(project)
    with running(project / "model") as plain, ThreadPoolExecutor(16) as pool:
        wait_for_ping(plain.url, 200)
        clients = [pool.submit(query_until_refused, plain.url, picture, stopping) for _ in range(16)]
        plain.log.wait_for('"status": 200', count=64)
        stopping.set()
        plain.process.send_signal(signal.SIGTERM)
        outcomes = Counter(outcome for client in clients for outcome in client.result(60))
        assert plain.process.wait(30) == -signal.SIGTERM
    assert outcomes.keys() == {200}
    assert outcomes[200] > 64
