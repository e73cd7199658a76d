"""The plain server: when it is ready, what it logs, its HTTP beyond the contract, and how it stops."""

import ctypes
import http.client
import json
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import uvicorn
from plain_server import (
    GATED_LOAD,
    GATED_PREDICT,
    a_picture,
    expecting,
    gated_predict,
    in_thread,
    post,
    running,
    wait_for_ping,
)

import inference
import server
from support import ROOT


@pytest.fixture(scope="module")
def model(project) -> inference.Model:
    return inference.model_fn(project / "model")


@pytest.fixture
def url(model):
    """The server in a thread of this process."""
    with in_thread(model) as url:
        yield url


# --- ready or not


def test_ping_and_invocations_are_503_until_the_model_is_loaded(project):
    with running(project / "model", GATED_LOAD) as plain:
        assert wait_for_ping(plain.url, 200, 503) == 503
        early = requests.post(f"{plain.url}/invocations", b"x", timeout=5)
        assert (early.status_code, early.json()["error"]) == (503, "not_loaded")
        assert early.headers["Retry-After"] == "1"
        plain.open("load")
        wait_for_ping(plain.url, 200)
        assert requests.post(f"{plain.url}/invocations", b"x", timeout=5).status_code == 400


def test_a_model_that_cannot_be_loaded_stops_the_server_with_the_reason(project, tmp_path):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    with open(model / "model.onnx", "ab") as file:
        file.write(b"x")
    with running(model) as plain:
        assert plain.process.wait(30) == 1
        output = plain.log.text()
    assert "package it again" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("port", ["taken", "99999"])
def test_a_port_that_cannot_be_bound_is_one_line_and_exit_code_1(project, monkeypatch, caplog, port):
    monkeypatch.setattr(server, "set_up_logging", lambda: None)
    monkeypatch.setattr(server, "return_large_blocks", lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1]) if port == "taken" else port
        assert server.main(["--model", str(project / "model"), "--port", number]) == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(f"cannot listen on 127.0.0.1 port {number}: ")


@pytest.mark.xdist_group("load")
def test_ping_answers_at_once_while_pictures_are_being_decoded(url, project, monkeypatch):
    """32 requests wait for a decode slot; the health check, which SageMaker gives 2 s, must not."""
    predicting, gate = gated_predict(monkeypatch)
    with ThreadPoolExecutor(32) as pool:
        replies = [pool.submit(post, url, a_picture(project)) for _ in range(32)]
        assert predicting.acquire(timeout=60)
        assert requests.get(f"{url}/ping", timeout=2).status_code == 200
        gate.set()
        assert {reply.result().status_code for reply in replies} == {200}


def test_a_compressed_body_is_refused_over_http_too(url, project):
    for encoding, status in (("gzip", 415), ("identity", 200)):
        assert post(url, a_picture(project), **{"Content-Encoding": encoding}).status_code == status


PARSERS = {"h11": "h11_impl:H11Protocol", "httptools": "httptools_impl:HttpToolsProtocol"}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: +4",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    ],
)
def test_a_body_without_one_certain_length_is_400_and_closed(model, monkeypatch, parser, head):
    """The image has h11; development has httptools, which uvicorn prefers."""
    pytest.importorskip(parser)
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", f"uvicorn.protocols.http.{PARSERS[parser]}")
    with in_thread(model) as url:
        wait_for_ping(url, 200)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as caller:
            hidden = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
            body = f"4\r\nabcd\r\n0\r\n\r\n{hidden}"
            caller.sendall(f"POST /invocations HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{body}".encode())
            answer = caller.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


# --- failures and the log


def test_a_failure_of_the_server_is_500_with_an_id_that_the_log_repeats(url, project, monkeypatch, caplog):
    def fail(*_):
        raise OSError("secret")

    monkeypatch.setattr(inference, "predict_fn", fail)
    reply = post(url, a_picture(project), **{"X-Amzn-SageMaker-Inference-Id": "mine"})
    assert requests.get(f"{url}/ping", timeout=20).status_code == 503  # the warm-up fails as well
    assert (reply.status_code, reply.json()["error"]) == (500, "internal")
    assert "secret" not in reply.text
    assert reply.json()["message"].endswith("under mine")
    assert "request mine failed" in caplog.text
    assert "OSError: secret" in caplog.text


def test_ping_is_200_after_a_failure_that_was_not_the_models(url, project, monkeypatch):
    predict = inference.predict_fn

    def fail_once(*_):
        monkeypatch.setattr(inference, "predict_fn", predict)
        raise OSError

    monkeypatch.setattr(inference, "predict_fn", fail_once)
    assert [post(url, a_picture(project)).status_code for _ in range(2)] == [500, 200]
    assert requests.get(f"{url}/ping", timeout=20).status_code == 200


def test_each_request_is_a_line_of_json_without_the_requests_content(project):
    picture, address = a_picture(project), {"url": "http://10.0.0.1/cat.jpg?token=secret"}
    with running(project / "model") as plain:
        wait_for_ping(plain.url, 200)
        post(plain.url, picture, **{"X-Amzn-SageMaker-Inference-Id": "mine"})
        requests.post(f"{plain.url}/invocations", json=address, timeout=20)
        plain.process.terminate()
        plain.process.wait(30)
        log = plain.log.text()
    one, other = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    assert (one["id"], one["status"], one["bytes"]) == ("mine", 200, len(picture))
    assert 0 < one["ms"] < 20_000
    assert (other["status"], len(other["id"])) == (422, 12)
    assert "secret" not in log


# --- HTTP


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ping", 200),
        ("HEAD", "/ping", 200),
        ("POST", "/ping", 405),
        ("GET", "/invocations", 405),
        ("PUT", "/invocations", 405),
        ("GET", "/", 404),
    ],
)
def test_methods_and_paths(url, method, path, status):
    reply = requests.request(method, url + path, timeout=20)
    assert reply.status_code == status
    assert status != 200 or reply.content == b""


def test_a_chunked_body_is_read(url, project):
    picture = a_picture(project)
    chunks = (picture[i : i + 1000] for i in range(0, len(picture), 1000))
    assert requests.post(f"{url}/invocations", chunks, timeout=60).json() == post(url, picture).json()


def test_a_chunked_body_over_25_mb_is_rejected(url):
    chunks = (bytes(10**6) for _ in range(26))
    reply = requests.post(f"{url}/invocations", chunks, timeout=60)
    assert (reply.status_code, reply.json()["error"]) == (413, "too_large")


def test_a_client_that_expects_100_continue_gets_it(url, project):
    picture = a_picture(project)
    with expecting(url, len(picture)) as caller:
        caller.sendall(picture)
        reply = http.client.HTTPResponse(caller)
        reply.begin()
        assert (reply.status, json.loads(reply.read())) == (200, post(url, picture).json())


def test_an_idle_connection_is_kept_for_longer_than_load_balancers_do(model, project, monkeypatch):
    assert server.KEEP_ALIVE_SECONDS > 60  # the default of AWS's
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 1)
    with in_thread(model) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        for _ in range(2):
            connection.request("POST", "/invocations", a_picture(project))
            reply = connection.getresponse()
            assert (reply.status, bool(reply.read())) == (200, True)
            connection.auto_open = False
        assert connection.sock.recv(1) == b""  # closed after one second, and not after uvicorn's own five
        connection.close()


# --- memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize("how", ["by itself", "the environment has a value"])
def test_large_blocks_of_memory_are_given_back_from_the_start(project, monkeypatch, how):
    """glibc would keep the second block in its heap, once it has seen the first one freed."""
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    if how != "by itself":
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(30 * 2**20))
    with running(project / "model", MAPPED_BLOCKS) as plain:
        line = plain.log.wait_for("mapped blocks")
        plain.process.kill()
    assert line == f"mapped blocks: {1 if how == 'by itself' else 0}\n"


MAPPED_BLOCKS = """
import ctypes
class Info(ctypes.Structure):  # struct mallinfo2 of malloc.h
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
def count(folder):
    libc.free(libc.malloc(20 * 2**20))
    before = libc.mallinfo2().hblks
    block = libc.malloc(8 * 2**20)
    print("mapped blocks:", libc.mallinfo2().hblks - before, flush=True)
server.model_fn = count
"""


def test_rays_replica_gives_memory_back_too(monkeypatch):
    app = pytest.importorskip("app")
    called = []
    monkeypatch.setattr(app, "return_large_blocks", lambda: called.append(True))
    monkeypatch.setattr(app, "model_fn", lambda folder: called.append(folder))
    app.Classifier.func_or_class()
    assert called == [True, app.MODEL_DIR]


@pytest.mark.parametrize("libc", ["musl", "Windows"])
def test_another_c_library_is_left_alone(monkeypatch, libc):
    def load(name):
        if libc == "Windows":
            raise TypeError("CDLL needs a name")
        return object()

    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert server.return_large_blocks() is False


# --- stopping


def test_requests_in_flight_are_answered_after_sigterm(project):
    """One picture is being predicted, and half of another received, when the signal comes."""
    picture = a_picture(project)
    with running(project / "model", GATED_PREDICT) as plain, ThreadPoolExecutor() as pool:
        wait_for_ping(plain.url, 200)
        predicting = pool.submit(post, plain.url, picture)
        plain.log.wait_for("predicting")
        with expecting(plain.url, len(picture)) as caller:
            caller.sendall(picture[:100])
            plain.process.send_signal(signal.SIGTERM)
            wait_for_ping(plain.url, 503, 0)
            caller.sendall(picture[100:])
            plain.open("predict")
            assert predicting.result().status_code == 200
            assert caller.recv(17) == b"HTTP/1.1 200 OK\r\n"
        assert plain.process.wait(30) == -signal.SIGTERM


def test_the_server_in_the_archive_is_the_one_in_the_repository(project):
    for file in (ROOT / "serve").glob("*.py"):
        assert (project / "model" / "code" / file.name).read_bytes() == file.read_bytes()
