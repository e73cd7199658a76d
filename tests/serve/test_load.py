"""Under load, over real HTTP: right answers, bounded memory and queue, and an end that loses nothing."""

import base64
import contextlib
import http.client
import io
import json
import random
import signal
import socket
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
from test_server import a_picture, free_port, running, wait_for_ping

from support import Endpoint

SIZE = 1000  # pixels a side, of noise: a body of 0.8 MB, 3 MB when it is decoded
PLACES = 64
ADDRESSED = 16
# The engine, or a stranger's server, answers when the test lets it: no test depends on how fast anything is.
GATED = """
import asyncio, os, sys, time
sys.path.insert(0, {{code!r}})
import inference, server
def wait():
    while not os.path.exists({gate!r}):
        time.sleep(0.01)
{what}
raise SystemExit(server.main(sys.argv[1:]))
"""
SLOW_ENGINE = """
load, predict = inference.model_fn, inference.predict_fn
def predict_when_told(batch, model):
    wait()
    return predict(batch, model)
def load_and_slow_down(folder):
    model = load(folder)
    inference.predict_fn = predict_when_told
    return model
server.model_fn = load_and_slow_down
"""
SLOW_ADDRESSES = """
def fetch(url, deadline):
    wait()
    return open({picture!r}, "rb").read()
inference.fetch = fetch
inference.FETCH_SECONDS = 120
"""
SLOW_BODIES = """
server.places = asyncio.Semaphore(2)
server.BODY_SECONDS = 0.5
"""


class Ask(NamedTuple):
    """A request, and what its answer must be: a status and a code, or the same as asked alone."""

    body: bytes
    headers: dict[str, str]
    status: int = 200
    code: str = ""

    def send(self, url: str, path: str = "/invocations") -> requests.Response:
        return requests.post(url + path, self.body, headers=self.headers, timeout=120)


@pytest.fixture
def server(project: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The plain server itself, with nothing before it: its address and its process."""
    port = free_port()
    with running(project / "model", port) as process:
        wait_for_ping(f"http://127.0.0.1:{port}", 200)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)


def encode(picture: Image.Image, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def good_asks(project: Path) -> list[Ask]:
    """Pictures of the project and of noise, in every kind of body."""
    noise = np.random.default_rng(0).integers(0, 255, (12, SIZE, SIZE, 3), np.uint8)
    pictures = [file.read_bytes() for file in sorted((project / "train" / "pictures").iterdir())[:4]]
    pictures += [encode(Image.fromarray(array)) for array in noise]
    asks = [Ask(picture, {"Content-Type": "image/jpeg"}) for picture in pictures]
    both = [{"image": base64.b64encode(picture).decode()} for picture in (pictures[0], pictures[-1])]
    asks.append(Ask(json.dumps({"instances": both}).encode(), {"Content-Type": "application/json"}))
    out = io.BytesIO()
    np.save(out, noise[:2, :300])
    asks.append(Ask(out.getvalue(), {"Content-Type": "application/x-npy", "Accept": "application/jsonlines"}))
    return asks


def bad_asks(picture: bytes, rng: random.Random) -> list[Ask]:
    """One of every refusal that a body or a header can earn."""
    jpeg, text = {"Content-Type": "image/jpeg"}, {"Content-Type": "application/json"}
    inside = json.dumps({"url": "http://169.254.169.254/latest"}).encode()
    junk = json.dumps({"image": base64.b64encode(rng.randbytes(300)).decode()}).encode()
    return [
        Ask(picture[: rng.randrange(200, len(picture) * 2 // 3)], jpeg, 400, "not_a_picture"),
        Ask(rng.randbytes(rng.randrange(50_000)), jpeg, 400, "not_a_picture"),
        Ask(b"", jpeg, 400, "not_a_picture"),
        Ask(rng.randbytes(1000), {"Content-Type": "application/x-npy"}, 400, "not_a_picture"),
        Ask(b'{"image": ', text, 400, "bad_json"),
        Ask(picture, jpeg | {"Accept": "text/html"}, 406, "not_acceptable"),
        Ask(encode(Image.new("1", (10_000, 5_001)), "PNG"), jpeg, 413, "too_large"),
        Ask(bytes(25_000_001), jpeg, 413, "too_large"),
        Ask(picture, {"Content-Type": "text/plain"}, 415, "unsupported_type"),
        Ask(b'{"instances": []}', text, 422, "no_picture"),
        Ask(junk, text, 422, "not_a_picture"),
        Ask(inside, text, 422, "address_refused"),
        Ask(picture, jpeg | {"X-Amzn-SageMaker-Custom-Attributes": "top_k=0"}, 422, "bad_top_k"),
    ]


def mixed(project: Path, count: int) -> list[Ask]:
    """Good requests, and bad ones at random between them: every third, in an order that the seed says."""
    rng, good = random.Random(0), good_asks(project)
    picture = good[-3].body
    bad = [ask for _ in range(count) for ask in bad_asks(picture, rng)][: count // 3]
    asks = [good[i % len(good)] for i in range(count - len(bad))] + bad
    rng.shuffle(asks)
    return asks


def check_all(url: str, asks: list[Ask], alone: dict[bytes, str], at_once: int) -> None:
    """Every good one is answered as it is alone, every bad one is refused for its own reason."""
    with ThreadPoolExecutor(at_once) as pool:
        for ask, reply in zip(asks, pool.map(lambda ask: ask.send(url), asks), strict=True):
            assert reply.status_code == ask.status, reply.text
            if ask.status == 200:
                assert reply.text == alone[ask.body]
            else:
                assert reply.json()["error"] == ask.code


def answers_alone(url: str, asks: list[Ask]) -> dict[bytes, str]:
    """What each good request is answered when nothing else happens."""
    return {ask.body: ask.send(url).text for ask in asks if ask.status == 200}


def test_requests_with_bad_ones_between_are_each_answered_right_in_flat_memory(server, project):
    url, process = server
    asks = mixed(project, 200)
    alone = answers_alone(url, good_asks(project))
    check_all(url, asks[:100], alone, at_once=32)
    before = process.memory_info().rss
    for _ in range(5):
        check_all(url, asks[100:], alone, at_once=32)
    bodies = 5 * sum(len(ask.body) for ask in asks[100:] if ask.status == 200)  # their pixels are far more
    assert bodies > 150e6
    assert process.memory_info().rss - before < bodies / 2


def test_ray_answers_right_with_bad_requests_between(ray_endpoint, project):
    asks = mixed(project, 60)
    check_all(ray_endpoint.url, asks, answers_alone(ray_endpoint.url, good_asks(project)), at_once=32)


def test_a_body_that_is_far_too_large_is_refused_and_its_connection_stays_usable(server, project):
    connection = http.client.HTTPConnection(server[0].removeprefix("http://"), timeout=60)
    for body, status in [(bytes(200 * 10**6), 413), (a_picture(project), 200)]:
        connection.request("POST", "/invocations", body)
        reply = connection.getresponse()
        assert reply.status == status, reply.read()
        assert reply.read()
    connection.close()


def test_a_connection_that_rested_for_some_seconds_is_still_open(server, project):
    connection = http.client.HTTPConnection(server[0].removeprefix("http://"), timeout=60)
    for seconds in (0, 6):  # the HTTP server's own idea is 5
        time.sleep(seconds)
        connection.request("POST", "/invocations", a_picture(project))
        reply = connection.getresponse()
        assert (reply.status, bool(reply.read())) == (200, True)
        connection.auto_open = False
    connection.close()


# --- the queue


@pytest.fixture
def gated(project: Path, tmp_path: Path) -> Iterator:
    """Start the server with something slow in it: what is slow -> its address, and the gate that ends it."""
    with contextlib.ExitStack() as stop:

        def start(what: str) -> tuple[str, Path]:
            port, gate = free_port(), tmp_path / "gate"
            program = GATED.format(gate=str(gate), what=what)
            stop.enter_context(running(project / "model", port, program))
            wait_for_ping(f"http://127.0.0.1:{port}", 200)
            return f"http://127.0.0.1:{port}", gate

        yield start


def burst(pool: ThreadPoolExecutor, ask: Ask, url: str, count: int, refused: int) -> list[Future]:
    """Send `count` at once, wait until `refused` of them are answered, and return those in flight."""
    sent = {pool.submit(ask.send, url) for _ in range(count)}
    done = set()
    while len(done) < refused:
        more = wait(sent - done, 60, FIRST_COMPLETED).done
        assert more, f"only {len(done)} of {refused} were refused"
        done |= more
    for reply in [future.result() for future in done]:
        assert (reply.status_code, reply.json()["error"]) == (503, "busy"), reply.text
        assert reply.headers["Retry-After"] == "1"
    return list(sent - done)


def test_a_burst_over_the_bound_is_told_to_come_again_and_the_rest_is_answered(gated, project):
    url, gate = gated(SLOW_ENGINE)
    ask = Ask(a_picture(project), {})
    with ThreadPoolExecutor(PLACES + 20) as pool:
        queued = burst(pool, ask, url, PLACES + 20, refused=20)
        assert requests.get(f"{url}/ping", timeout=5).status_code == 200
        assert not any(future.done() for future in queued)
        gate.touch()
        assert {future.result().status_code for future in queued} == {200}
    assert ask.send(url).status_code == 200


def test_requests_that_wait_for_addresses_leave_room_for_pictures(gated, project, tmp_path):
    picture = tmp_path / "picture"
    picture.write_bytes(a_picture(project))
    url, gate = gated(SLOW_ADDRESSES.format(picture=str(picture)))
    address = Ask(b'{"url": "http://example.com/cat.jpg"}', {"Content-Type": "application/json"})
    with ThreadPoolExecutor(ADDRESSED + 32) as pool:
        waiting = burst(pool, address, url, ADDRESSED + 4, refused=4)
        pictures = pool.map(lambda _: Ask(picture.read_bytes(), {}).send(url), range(32))
        assert {reply.status_code for reply in pictures} == {200}
        assert not any(future.done() for future in waiting)
        gate.touch()
        assert {future.result().status_code for future in waiting} == {200}
    assert address.send(url).status_code == 200


def test_bodies_that_do_not_arrive_are_408_and_give_their_place_back(gated, project):
    url, _ = gated(SLOW_BODIES)
    for _ in range(3):  # in two places
        with slow_body(url) as connection:
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            assert (reply.status, json.loads(reply.read())["error"]) == (408, "slow_body")
            assert connection.recv(1) == b""  # closed
    for _ in range(3):
        slow_body(url).close()  # which the server need not have noticed when the next request comes
    ask, deadline = Ask(a_picture(project), {}), time.monotonic() + 60
    while (status := ask.send(url).status_code) == 503 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status == 200


def slow_body(url: str) -> socket.socket:
    """A connection that promised 1,000 bytes and sent one."""
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60)
    connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
    return connection


def test_ray_tells_a_burst_to_come_again(ray_endpoint):
    """Straight to Ray's own port: the stand-in for SageMaker would not let so many through."""
    slow = encode(Image.new("RGB", (5000, 4000)), "PNG")
    body = json.dumps({"instances": [{"image": base64.b64encode(slow).decode()}] * 2}).encode()
    ask, url = Ask(body, {"Content-Type": "application/json"}), ray_address(ray_endpoint)
    with ThreadPoolExecutor(2 * PLACES) as pool:
        replies = list(pool.map(lambda _: ask.send(url, path="/"), range(2 * PLACES)))
    assert Counter(reply.status_code for reply in replies).keys() == {200, 503}
    for reply in replies:
        if reply.status_code == 503:
            assert (reply.json()["error"], reply.headers["Retry-After"]) == ("busy", "1")


def ray_address(endpoint: Endpoint) -> str:
    """Where Ray itself listens, from the configuration that local.py wrote for it."""
    for child in psutil.Process(endpoint.process.pid).children():
        options = yaml.safe_load(Path(child.cmdline()[-1]).read_text())["http_options"]
        return f"http://{options['host']}:{options['port']}"
    raise AssertionError("Ray does not run")


# --- the end


def ask_until_the_end(url: str, picture: bytes, told: threading.Event) -> list[int | str]:
    """Ask on one connection, again on another when the answer closes it, until none can be had.

    Returns the statuses, and "lost" for a request that began before `told` or went out on an open connection.
    """
    outcomes, address, connection = [], url.removeprefix("http://"), None
    while True:
        fresh, late = connection is None, told.is_set()
        try:
            connection = connection or http.client.HTTPConnection(address, timeout=60)
            connection.request("POST", "/invocations", picture)
            reply = connection.getresponse()
            reply.read()
        except OSError:
            return outcomes if fresh and late else [*outcomes, "lost"]
        outcomes.append(reply.status)
        if reply.will_close:
            connection.close()
            connection = None


def test_sigterm_under_load_loses_no_request(project):
    port, told = free_port(), threading.Event()
    url, picture = f"http://127.0.0.1:{port}", a_picture(project)
    with running(project / "model", port) as process, ThreadPoolExecutor(16) as pool:
        wait_for_ping(url, 200)
        asking = [pool.submit(ask_until_the_end, url, picture, told) for _ in range(16)]
        time.sleep(1)  # the load is on
        told.set()
        process.send_signal(signal.SIGTERM)
        outcomes = Counter(outcome for future in asking for outcome in future.result(60))
        assert process.wait(30) == -signal.SIGTERM
    assert outcomes.keys() == {200}
    assert outcomes[200] > 32
