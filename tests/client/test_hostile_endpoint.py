"""client/predictor.py with endpoints that send too much, too slowly, or something else than an answer."""

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from itertools import chain, repeat
from types import SimpleNamespace

import pytest
from PIL import Image
from test_client_answers import segmentation
from test_predictor import aws, failure, on_sagemaker  # noqa: F401  aws is a fixture

import predictor
from predictor import MAX_ANSWER, ImagePredictor
from scripted_server import ANSWER, aws_error, reply, scripted

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BLOCK = b" " * 65536
EVIL = "\x1b]52;c;aGk=\x07\x9b2J\u202eeno\u200b\U000e0041"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(predictor, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 0.02)


def forever(*pieces):
    """A function whose result is the pieces, and then the last one again and again."""
    return lambda: chain(pieces, repeat(pieces[-1]))


@contextmanager
def raw(answer, pause=0.0, before=0.0):
    """A server that sends the pieces of `answer()`, whatever they are; yields url, sent, connections."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), SimpleNamespace(sent=0, connections=0)
    seen.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    over = threading.Event()

    def serve(connection):
        with connection:
            time.sleep(before)
            read_request(connection)
            try:
                for piece in answer():
                    connection.sendall(piece)
                    seen.sent += len(piece)
                    if over.wait(pause):
                        break
            except OSError:
                pass  # the client has closed the connection

    def accept():
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            seen.connections += 1
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield seen
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def read_request(connection):
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    if b"expect: 100-continue" in head.lower():
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def requests_running():
    return [thread for thread in threading.enumerate() if thread.name == "request"]


# Too much


ENDLESS = {
    "1 GB": forever(OK + b"Content-Length: 1000000000\r\n\r\n", BLOCK),
    "without end": forever(OK + b"\r\n", BLOCK),
    "chunks": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + BLOCK + b"\r\n"),
    "a chunk of -1 bytes": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", BLOCK),
    "the length of a chunk": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
    "a chunk's comment": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x" * 65536),
    "headers": forever(OK, b"X: " + b"x" * 60_000 + b"\r\n"),
    "a header": forever(OK + b"X: ", b"x" * 65536),
    "a status": forever(b"HTTP/1.1 ", b"2" * 65536),
    "interim replies": forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "an error": forever(b"HTTP/1.1 400 Bad Request\r\n\r\n", BLOCK),
    "a busy server": forever(b"HTTP/1.1 503 Busy\r\n\r\n", BLOCK),
    "a redirect": forever(b"HTTP/1.1 301 Moved\r\nLocation: /there\r\n\r\n", BLOCK),
}


@pytest.mark.parametrize("pieces", ENDLESS.values(), ids=ENDLESS)
def test_a_reply_without_end_is_an_error_after_a_bounded_number_of_bytes(pieces):
    with raw(pieces) as server:
        error = failure(ImagePredictor(url=server.url, timeout=60).predict, b"x")
        assert until(lambda: not requests_running())
    assert error.code in ("unexpected", "unreachable")
    if error.code == "unexpected":
        assert str(error) == "the answer has over 25 MB; is this the right endpoint?"
    assert server.sent < 2 * MAX_ANSWER + 20 * 10**6  # what the system buffers


def test_a_reply_without_end_through_a_proxy(monkeypatch):
    chunk = forever(OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", BLOCK)
    with raw(chunk) as server:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.delenv("no_proxy", raising=False)
        error = failure(ImagePredictor(url="http://endpoint.invalid").predict, b"x")
        assert (error.code, server.connections) == ("unexpected", 1)
    assert server.sent < 2 * MAX_ANSWER + 20 * 10**6


def test_a_compressed_reply_is_not_unpacked():
    body = gzip.compress(json.dumps(ANSWER | {"more": "x" * 10**6}).encode())
    head = OK + f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with raw(lambda: [head + body]) as server:
        assert failure(ImagePredictor(url=server.url).predict, b"x").code == "unexpected"


@pytest.mark.parametrize(("more", "passes"), [(0, True), (1, False)])
def test_the_largest_answer_of_the_contract_passes(more, passes):
    start = '{"values": [1.5], "more": "'
    body = start + "x" * (MAX_ANSWER - len(start) - 2 + more) + '"}'
    with scripted(reply(body=body)) as server:
        if passes:
            assert ImagePredictor(url=server.url).predict(b"x")["values"] == [1.5]
        else:
            assert failure(ImagePredictor(url=server.url).predict, b"x").code == "unexpected"


@pytest.mark.parametrize("pieces", [ENDLESS["1 GB"], ENDLESS["without end"]], ids=["1 GB", "without end"])
def test_an_answer_without_end_on_sagemaker(aws, pieces):  # noqa: F811
    with raw(pieces) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, str(error)) == (
        "unexpected",
        "the answer has over 25 MB; is this the right endpoint?",
    )
    assert server.sent < MAX_ANSWER + 20 * 10**6


# Too slowly


SLOW = {
    "nothing": lambda: iter([b""]),
    "a status": forever(b"HTTP/1.1 2", b"0"),
    "headers": forever(OK, b"X"),
    "interim replies": forever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": forever(OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "a body without length": forever(OK + b"\r\n", b" "),
    "chunks": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "the length of a chunk": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "an error": forever(b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", b" "),
}


@pytest.mark.parametrize("pieces", SLOW.values(), ids=SLOW)
def test_a_byte_at_a_time_is_a_timeout_for_the_whole_answer(pieces):
    with raw(pieces, pause=0.2 if pieces is not SLOW["nothing"] else 60) as server:
        started = time.monotonic()
        error = failure(ImagePredictor(url=server.url, timeout=0.6).predict, b"x")
        assert 0.6 <= time.monotonic() - started < 3
        assert (error.code, str(error)) == (
            "timeout",
            f"{server.url}/invocations did not answer within 0.6 s",
        )
        assert until(lambda: not requests_running())  # its thread does not read on
        assert server.connections == 1


def test_a_byte_at_a_time_on_sagemaker(aws):  # noqa: F811
    with raw(SLOW["a body"], pause=0.2) as server:
        error = failure(on_sagemaker(aws, server.url, timeout=0.6, max_wait=0).predict, b"x")
    assert (error.code, str(error)) == ("timeout", "pets did not answer within 0.6 s")


@pytest.mark.parametrize("on_aws", [False, True], ids=["plain", "sagemaker"])
def test_an_upload_may_take_longer_than_to_connect(monkeypatch, aws, on_aws):  # noqa: F811
    monkeypatch.setattr(predictor, "CONNECT_SECONDS", 0.3)
    body = json.dumps(ANSWER).encode()
    with raw(lambda: [OK + f"Content-Length: {len(body)}\r\n\r\n".encode() + body], before=1) as server:
        pets = on_sagemaker(aws, server.url) if on_aws else ImagePredictor(url=server.url)
        assert pets.predict(b"x" * 20_000_000) == ANSWER


def test_a_connection_is_kept_for_the_next_picture():
    body = json.dumps(ANSWER).encode()
    answer = OK + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    seen = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection:
            for _ in range(3):
                seen.append(read_request(connection))
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    with listener, ImagePredictor(url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10) as pets:
        assert [pets.predict(b"x") for _ in range(3)] == [ANSWER] * 3
    assert len(seen) == 3


def test_cookies_are_not_kept():
    with scripted(reply(Set_Cookie="a=" + "x" * 60_000)) as server:
        pets = ImagePredictor(url=server.url)
        assert [pets.predict(b"x") for _ in range(2)] == [ANSWER] * 2
    assert "Cookie" not in server.requests[1].headers


# close


def closed_while(pets, waits):
    """The errors of two pictures whose predictor is closed once `waits()` is true, and the seconds since."""
    closed_at = []

    def close():
        until(waits)
        closed_at.append(time.monotonic())
        pets.close()

    threading.Thread(target=close, daemon=True).start()
    errors = [(error.code, str(error)) for error in pets.predict_many([b"x", b"x"])]
    return errors, time.monotonic() - closed_at[0]


STOPPED = ("stopped", "close() was called before the answer came")


@pytest.mark.parametrize("on_aws", [False, True], ids=["plain", "sagemaker"])
@pytest.mark.parametrize("retries", [False, True], ids=["no answer", "busy"])
def test_close_ends_the_waiting_of_other_threads(aws, monkeypatch, on_aws, retries):  # noqa: F811
    monkeypatch.setattr(predictor, "FIRST_WAIT", 30)
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 30)
    busy = aws_error(429, "ModelNotReadyException", "x") if on_aws else reply(503, {"error": "busy"})
    with scripted(busy if retries else reply(wait=3)) as server:
        pets = on_sagemaker(aws, server.url, max_wait=30) if on_aws else ImagePredictor(url=server.url)
        errors, seconds = closed_while(pets, lambda: len(server.requests) >= 2)
        assert (errors, seconds < 2) == ([STOPPED] * 2, True)
        sent = len(server.requests)
        assert failure(pets.predict, b"x").code == "stopped"  # from now on
        assert len(server.requests) == sent


def test_a_with_statement_closes():
    with scripted(reply()) as server:
        with ImagePredictor(url=server.url) as pets:
            assert pets.predict(b"x") == ANSWER
        assert failure(pets.predict, b"x").code == "stopped"


# Another shape


def text(**answer):
    return json.dumps(answer).encode()


SHAPES = {
    "a class without confidence": b'{"class": "a"}',
    "a class that is a number": text(**ANSWER | {"class": 5}),
    "a class that is a list": text(**ANSWER | {"class": ["cat"]}),
    "predictions that are a number": text(**ANSWER | {"predictions": 5}),
    "predictions of nothing": text(**ANSWER | {"predictions": [None]}),
    "an error": text(error="not_a_picture", message="x"),
    "an error besides": text(**ANSWER | {"error": "not_a_picture"}),
    "a file": text(file="/etc/passwd"),
    "brackets": b"[" * 100_000,
    "brackets in an answer": b'{"values": [1], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "names in names": b'{"a":' * 100_000,
    "a huge number": b'{"values": [1' + b"0" * 400 + b"]}",
    "a number of a million digits": b'{"values": [1], "x": ' + b"1" * 10**6 + b"}",
    "NaN": text(**ANSWER | {"confidence": float("nan")}),
    "NaN elsewhere": text(**ANSWER | {"x": float("nan")}),
    "infinite elsewhere": b'{"values": [1], "x": 1e999}',
    "a key twice": b'{"values": [1.5], "values": [2]}',
    "a key twice further in": b'{"class": "a", "confidence": 1, "predictions": [{"class": 1, "class": "a"}]}',
    "another encoding": text(**ANSWER).decode().encode("utf-16"),
    "invalid UTF-8": b'{"class": "\xff", "confidence": 1, "predictions": []}',
    "a surrogate in UTF-8": b'{"class": "\xed\xa0\x80", "confidence": 1, "predictions": []}',
    "an escaped surrogate": b'{"class": "\\ud800", "confidence": 1, "predictions": []}',
    "a long name": text(**ANSWER | {"class": "a" * 1001}),
    "a million values": b'{"values": [1' + b",1" * 10**6 + b"]}",
    "a million lists": b'{"values": [1], "x": [' + b"[]," * 10**6 + b"[]]}",
    "nothing": b"",
    "null": b"null",
    "a text with control characters": EVIL.encode(),
}


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_another_shape_is_an_unexpected_answer(body):
    head = OK + f"Content-Length: {len(body)}\r\n\r\n".encode()
    with raw(lambda: [head + body]) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status) == ("unexpected", 200)
    assert str(error).startswith("not a prediction: ")
    assert not predictor.UNSAFE.search(str(error))
    assert len(str(error)) < 1000


def test_names_keep_their_letters_and_are_safe_after_terminal_safe():
    names = [  # a cat, a dog with accents, cats in Persian, a scientist
        "猫",
        "perro ñandú",
        "\u06af\u0631\u0628\u0647\u200c\u0647\u0627",
        "\U0001f469\u200d\U0001f52c",
        EVIL,
    ]
    with scripted(*(reply(body=ANSWER | {"class": name}) for name in names)) as server:
        found = [ImagePredictor(url=server.url).predict(b"x")["class"] for _ in names]
    assert found == names
    assert [predictor.terminal_safe(name) for name in names[:4]] == names[:4]
    assert predictor.terminal_safe(EVIL) == ("\\x1b]52;c;aGk=\\x07\\x9b2J\\u202eeno\\u200b\\U000e0041")


REFUSALS = {
    "a code that is a number": {"error": 5, "message": "x"},
    "a code that is a list": {"error": ["busy"], "message": "x"},
    "a code with control characters": {"error": EVIL, "message": "x"},
    "a message that is a list": {"error": "busy", "message": ["x"]},
    "a message that is nothing": {"error": "busy", "message": None},
    "brackets": "[" * 100_000,
    "brackets in a message": '{"error": "busy", "message": ' + "[" * 100_000,
}


@pytest.mark.parametrize("body", REFUSALS.values(), ids=REFUSALS)
def test_an_error_of_another_shape_is_quoted_safely(body):
    with scripted(reply(400, body)) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status) == ("unexpected", 400)
    assert str(error).startswith("the server answered with status 400: ")
    assert not predictor.UNSAFE.search(str(error))
    assert len(str(error)) < 1000


def test_an_errors_message_is_cut_and_escaped():
    with scripted(reply(400, {"error": "internal", "message": EVIL + "x" * 10**6})) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert str(error).startswith("\\x1b]52;c;aGk=\\x07\\x9b2J\\u202eeno\\u200b\\U000e0041xxx")
    assert len(str(error)) < 1100


def test_a_failure_that_would_take_an_expression_hours_is_quoted_at_once():
    started = time.monotonic()
    error = predictor._failure('(500) from "' * 10**6)
    assert time.monotonic() - started < 2
    assert error.code == "unexpected"


# Large photographs


def png_of(width, height):
    """The beginning of a PNG that claims this size."""
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    end = zlib.crc32(header).to_bytes(4) + b"\0\0\0\x04IDATxxxx" + zlib.crc32(b"IDATxxxx").to_bytes(4)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + end


def predict_apart(file, url, task):
    """What a process of its own prints, in which every warning is an error: the answer's size, and MB."""
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from predictor import ImagePredictor, read_mask\n"
        "import requests, PIL.Image; PIL.Image.init()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "answer = ImagePredictor(url=sys.argv[3]).predict(sys.argv[2])\n"
        "print(read_mask(answer).size if 'mask' in answer else answer['class'])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)\n"
    )
    folder = str(predictor.__file__).rpartition("/")[0]
    command = [sys.executable, "-W", "error", "-c", script, folder, file, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), task
    return done.stdout.split("\n")[:2]


def test_a_photograph_of_200_megapixels_is_scaled_down_silently_and_in_little_memory(tmp_path):
    Image.new("L", (16_320, 12_240), 90).save(tmp_path / "a.jpg")
    with scripted(reply()) as server:
        found, megabytes = predict_apart(tmp_path / "a.jpg", server.url, "class")
    assert found == "cat"
    assert int(megabytes) < 100
    assert server.requests[0].headers["Content-Type"] == "image/jpeg"
    assert len(server.requests[0].body) < 100_000


def test_the_mask_of_a_photograph_of_108_megapixels_has_its_size(tmp_path):
    Image.new("L", (12_000, 9_000), 90).save(tmp_path / "a.jpg")
    with scripted(reply(body=segmentation(Image.new("L", (1280, 960))))) as server:
        assert predict_apart(tmp_path / "a.jpg", server.url, "mask")[0] == "(12000, 9000)"


def test_a_picture_over_the_servers_pixels_is_scaled_down_even_if_its_jpeg_is_larger(tmp_path):
    Image.new("1", (9_000, 7_000)).save(tmp_path / "a.png")
    body, content_type = predictor.pack(tmp_path / "a.png", 1280)
    assert content_type == "image/jpeg"
    assert len(body) > 0


def test_more_pixels_than_can_be_decoded_are_a_sentence():
    error = failure(ImagePredictor(url="http://127.0.0.1:1").predict, png_of(20_000, 20_000))
    assert (error.code, str(error)) == (
        "too_large",
        "the picture has 400 megapixels: save it with 220 or fewer",
    )
    assert predictor.pack(png_of(20_000, 20_000))[1] == "image/png"  # unscaled: the server decides
