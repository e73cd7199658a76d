"""The HTTP contract, row by row: all in process, and what HTTP or a server can change over each server.

TOOLKIT=1 in the environment installs AWS's sagemaker-inference toolkit and runs these rows under it, too.
"""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests
import toolkit_server
from PIL import Image

import fetch
import inference
import pixels
import server
from support import ROOT

SERVERS = {"plain": "endpoint", "ray": "ray_endpoint", "docker": "docker_endpoint"}  # and their fixtures
OTHERS = ["toolkit"] if os.environ.get("TOOLKIT") else []


class Wire(tuple):
    """A row that runs over real HTTP as well."""


def wire(*values: object) -> Wire:
    return Wire(values)


class Served(Wire):
    """A row over HTTP, but not under the toolkit: it decides on these before our code."""


def served(*values: object) -> Served:
    return Served(values)


def rows(names: str = "", *values: object) -> Callable:
    """A test's rows: each runs in process, and those by `wire` over every server, too."""

    def mark(test: Callable) -> Callable:
        test.rows = names.split(), values or ((),)  # type: ignore[attr-defined]  # for pytest_generate_tests
        return test

    return mark


def group(way: str) -> list[pytest.MarkDecorator]:
    """The group of pytest-xdist, so that only one worker starts Ray or a container."""
    return [pytest.mark.xdist_group(way)] if way in ("ray", "docker") else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize `send`: each row with the handlers in process, and those by `wire` with the servers."""
    names, values = getattr(metafunc.function, "rows", ([], ()))
    cases = []
    for number, value in enumerate(values):
        row = value if isinstance(value, tuple) else (value,)
        others = OTHERS if isinstance(value, Wire) and not isinstance(value, Served) else []
        for way in ["handlers", *SERVERS, *others] if isinstance(value, Wire) else ["handlers"]:
            cases.append(pytest.param(way, *row, marks=group(way), id=f"{way}-{number}" if names else way))
    if cases:
        metafunc.parametrize(["send", *names], cases, indirect=["send"])


class Reply:
    """An answer of the handlers with the attributes of requests.Response that the tests read."""

    def __init__(self, answer: inference.Answer) -> None:
        self.status_code, self.content = answer.status, answer.body
        self.headers, self.text = {"content-type": answer.content_type}, answer.body.decode(errors="replace")

    def json(self) -> Any:
        return json.loads(self.content)


Send = Callable[[bytes, dict[str, str]], Reply | requests.Response]


@pytest.fixture(scope="module")
def model(project) -> inference.Model:
    return inference.model_fn(project / "model")


@pytest.fixture(scope="module")
def send(request: pytest.FixtureRequest) -> Send:
    """Send a body and headers to the handlers in this process, or to a server."""
    if request.param == "handlers":
        model = request.getfixturevalue("model")

        def in_process(body: bytes, headers: dict[str, str]) -> Reply:
            lower = {name.lower(): value for name, value in headers.items()}
            return Reply(inference.handle(model, body, lower))

        return in_process
    if request.param == "toolkit":
        return request.getfixturevalue("under_toolkit")
    url = request.getfixturevalue(SERVERS[request.param]).url
    return lambda body, headers: requests.post(f"{url}/invocations", body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def under_toolkit(project, tmp_path_factory) -> Iterator[Send]:
    """Send to the handlers under AWS's toolkit; of an error the body's first line, before the traceback."""
    folder = tmp_path_factory.mktemp("toolkit")
    toolkit_server.install(folder)
    with toolkit_server.running(project / "model", folder) as ask:

        def send(body: bytes, headers: dict[str, str]) -> Reply:
            status, phrase, content_type, answer = ask(body, headers)
            if status == 200:
                return Reply(inference.Answer(status, content_type, answer))
            first, _, trace = answer.partition(b"\n")
            assert phrase == json.loads(first)["error"]
            assert b"Traceback" in trace
            return Reply(inference.Answer(status, "application/json", first))

        yield send


@pytest.fixture(scope="module")
def cat(project) -> bytes:
    """A validation picture, as JPEG."""
    return encode(Image.open(next(iter(sorted((project / "train" / "pictures").iterdir())))).convert("RGB"))


def encode(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def post(
    send: Send, body: bytes | dict, content_type: str = "image/jpeg", **headers: str
) -> Reply | requests.Response:
    if not isinstance(body, bytes):
        body, content_type = json.dumps(body).encode(), "application/json"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return send(body, {"Content-Type": content_type, **headers})


def b64(data: bytes) -> dict:
    return {"image": base64.b64encode(data).decode()}


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=pickled)
    return out.getvalue()


def check_error(reply: Reply | requests.Response, status: int, code: str, message: str = "") -> None:
    """The status, the code, and a short message without a traceback."""
    assert (reply.status_code, reply.json()["error"]) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"error", "message"}
    assert message in reply.json()["message"]
    assert len(reply.content) < 1024
    assert "Traceback" not in reply.text
    assert "File " not in reply.text


@pytest.mark.parametrize("way", [pytest.param(way, marks=group(way)) for way in SERVERS])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping_is_200_and_empty(request, way, method):
    url = request.getfixturevalue(SERVERS[way]).url
    reply = requests.request(method, f"{url}/ping", timeout=10)
    assert (reply.status_code, reply.content) == (200, b"")


@rows("", wire())
def test_one_picture_has_one_answer_best_first(send, cat):
    answer = post(send, cat).json()
    assert set(answer) == {"class", "confidence", "predictions"}
    assert answer["predictions"][0] == {"class": answer["class"], "confidence": answer["confidence"]}
    confidences = [p["confidence"] for p in answer["predictions"]]
    assert confidences == sorted(confidences, reverse=True)
    assert sum(confidences) == pytest.approx(1, abs=1e-4)
    assert {p["class"] for p in answer["predictions"]} == {"Cat", "Dog", "Owl", "Rabbit"}


@rows(
    "kind content_type",
    wire("JPEG", "image/jpeg"),
    ("PNG", "image/png"),
    ("WEBP", "image/webp"),
    ("GIF", "image/gif"),
    ("BMP", "image/bmp"),
    ("TIFF", "image/tiff"),
    ("PNG", "image/x-whatever"),
    wire("PNG", "IMAGE/PNG; charset=binary"),
    wire("PNG", "application/x-image"),
    wire("PNG", "application/octet-stream"),
    wire("PNG", "binary/octet-stream"),
    wire("PNG", ""),
    served("PNG", "application/json"),  # JSON that is not UTF-8
    *((kind, "application/json") for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF")),
)
def test_every_picture_type_is_read(send, kind, content_type):
    picture = Image.new("RGB", (60, 80), (200, 120, 40))
    assert post(send, encode(picture, kind), content_type).json()["predictions"]


@rows("", wire())
def test_a_picture_needs_no_content_type(send, cat):
    assert send(cat, {}).json() == post(send, cat).json()


@rows()
def test_the_format_is_detected_from_the_bytes_not_the_content_type(send, cat):
    assert post(send, cat, "image/png").json() == post(send, cat, "image/jpeg").json()


@rows("", wire())
def test_json_image_answers_as_the_bytes_do(send, cat):
    assert post(send, b64(cat)).json() == post(send, cat).json()


def base64_variants(data: bytes) -> list[str]:
    """The same bytes as browsers, MIME and URL-safe encoders write them."""
    text, safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    lines = base64.encodebytes(data).decode()
    urls = f"data:image/jpeg;base64,{text}", f" DATA:;Base64,{safe}"
    return [*urls, lines, safe, safe.rstrip("="), text.rstrip("=")]


@rows("variant", wire(0), *range(1, 6))
def test_base64_may_be_written_in_any_way(send, cat, variant):
    for data in (cat, cat + b"\xfb", cat + b"\xfb\xff"):  # every length of padding; decoders ignore the end
        assert post(send, {"image": base64_variants(data)[variant]}).json() == post(send, cat).json()


@rows("", wire())
def test_a_data_url_may_be_sent_as_an_address(send, cat):
    assert post(send, {"url": base64_variants(cat)[0]}).json() == post(send, cat).json()
    check_error(post(send, {"url": "data:image/svg+xml,<svg/>"}), 422, "no_picture", "not base64")


@rows("", wire())
def test_npy_answers_as_the_picture_does(send, cat):
    array = np.asarray(Image.open(io.BytesIO(cat)))
    assert post(send, npy(array), "application/x-npy").json() == post(send, cat).json()


@rows()
def test_several_pictures_keep_their_order_and_a_bad_one_affects_no_other(send, cat):
    grey = encode(Image.new("RGB", (50, 50), "grey"), "PNG")
    instances = [b64(cat), b64(b"no picture"), {"what": 1}, b64(grey), {"image": "*"}, b64(cat[:300]), "x"]
    answers = post(send, {"instances": instances}).json()["predictions"]
    assert [a.get("error") for a in answers] == [
        None, "not_a_picture", "no_picture", None, "no_picture", "not_a_picture", "no_picture",
    ]  # fmt: skip
    alone = [post(send, cat).json(), post(send, grey, "image/png").json()]
    assert [answers[0]["class"], answers[3]["class"]] == [a["class"] for a in alone]
    assert answers[0]["confidence"] == pytest.approx(alone[0]["confidence"], abs=1e-4)


@rows()
def test_an_array_of_several_pictures_is_a_batch(send):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), np.uint8)
    assert len(post(send, npy(pictures), "application/x-npy").json()["predictions"]) == 3


@rows("n", 1, 2, 99)
def test_top_k_in_json(send, cat, n):
    assert len(post(send, b64(cat) | {"top_k": n}).json()["predictions"]) == min(n, 4)


@rows("attributes", wire("top_k=2"), wire("trace=abc, top_k = 2"))
def test_top_k_in_the_custom_attributes(send, cat, attributes):
    reply = post(send, cat, X_Amzn_SageMaker_Custom_Attributes=attributes)
    assert len(reply.json()["predictions"]) == 2


@rows("", wire())
def test_top_k_in_json_beats_the_header(send, cat):
    reply = post(send, b64(cat) | {"top_k": 1}, X_Amzn_SageMaker_Custom_Attributes="top_k=3")
    assert len(reply.json()["predictions"]) == 1


@rows("value", *[0, -1, 1.5, True, "x", None, [2]])
def test_422_for_a_top_k_that_is_not_a_whole_number_from_1(send, cat, value):
    check_error(post(send, b64(cat) | {"top_k": value}), 422, "bad_top_k")


@rows("", wire())
def test_422_for_a_custom_attribute_top_k_that_is_not_a_number(send, cat):
    check_error(post(send, cat, X_Amzn_SageMaker_Custom_Attributes="top_k=many"), 422, "bad_top_k", "many")


@rows(
    "accept",
    wire("*/*"),
    wire("*"),
    wire("application/json"),
    wire("application/*"),
    wire("text/html, application/json;q=0.5"),
)
def test_most_accept_headers_get_json(send, cat, accept):
    assert post(send, cat, Accept=accept).headers["content-type"] == "application/json"


@rows("", wire())
def test_jsonlines_has_a_line_per_picture(send, cat):
    reply = post(send, {"instances": [b64(cat), b64(b"x")]}, Accept="application/jsonlines")
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert reply.headers["content-type"] == "application/jsonlines"
    assert lines[0]["class"] == post(send, cat).json()["class"]
    assert lines[1]["error"] == "not_a_picture"


@rows("", wire())
def test_npy_has_every_probability_as_float32_and_nan_for_a_bad_picture(send, cat):
    reply = post(send, {"instances": [b64(cat), b64(b"x")]}, Accept="application/x-npy")
    probabilities = np.load(io.BytesIO(reply.content), allow_pickle=False)
    assert (probabilities.shape, probabilities.dtype) == ((2, 4), np.float32)
    assert probabilities[0].sum() == pytest.approx(1, abs=1e-5)
    assert np.isnan(probabilities[1]).all()


@rows("body", wire(b""), wire(b"no picture"), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", bytes(1000))
def test_400_for_a_body_that_is_not_a_picture(send, body):
    check_error(post(send, body), 400, "not_a_picture")


@rows("", wire())
def test_400_for_heic_and_avif_says_what_to_do(send):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    check_error(
        post(send, heic, "image/heic"), 400, "not_a_picture", "HEIC and AVIF pictures cannot be read: convert"
    )
    check_error(post(send, b64(heic)), 422, "not_a_picture", "HEIC and AVIF pictures cannot be read: convert")


@rows("variant", wire(0), *range(1, 6))
def test_400_for_base64_sent_as_a_picture_says_what_to_do(send, cat, variant):
    for text in (base64_variants(cat)[variant], f'"{base64_variants(cat)[variant]}"'):
        check_error(post(send, text.encode()), 400, "not_a_picture", "this is base64, not a picture's bytes")
    twice = base64.b64encode(base64_variants(cat)[variant].encode()).decode()
    check_error(post(send, {"image": twice}), 422, "not_a_picture", "this is base64")


@rows(
    "content_type code",
    wire("image/jpeg", "not_a_picture"),
    wire("application/json", "bad_json"),
    ("application/x-npy", "not_a_picture"),
    ("", "not_a_picture"),
)
def test_400_for_an_empty_body_says_so(send, content_type, code):
    check_error(post(send, b"", content_type), 400, code, "the body is empty")


@rows()
def test_400_for_a_truncated_picture(send, cat):
    check_error(post(send, cat[: len(cat) // 2]), 400, "not_a_picture", "truncated")


@rows("body", wire(b""), b"{", b"[1,", served(b"\xff"), b"[" * 100_000)
def test_400_for_broken_json(send, body):
    check_error(post(send, body, "application/json"), 400, "bad_json")


@rows(
    "body",
    b"no array",
    npy(np.zeros((4, 4, 3), np.float32)),
    npy(np.zeros((4, 4), np.uint8)),
    npy(np.zeros((4, 4, 4), np.uint8)),
    npy(np.zeros((0, 4, 3), np.uint8)),
    npy(np.asfortranarray(np.zeros((4, 5, 3), np.uint8))),
    npy(np.array([{"a": 1}], dtype=object), pickled=True),
    npy(np.zeros((4, 4, 3), np.uint8))[:-1],
    npy(np.zeros((4, 4, 3), np.uint8)).replace(b"(4, 4, 3)", b"(99999999, 99999, 3)"),
    npy(np.zeros((4, 4, 3), np.uint8)).replace(b"(4, 4, 3)", b"(-1, 4, 3)"),
    npy(np.zeros((4, 4, 3), np.uint8)).replace(b"{'descr'", b"{[]: 1, '"),
    npy(np.zeros((4, 4, 3), np.uint8)).replace(b"{'descr'", b"((((((((("),
)  # fmt: skip
def test_400_for_an_array_of_another_shape_type_or_size(send, body):
    check_error(post(send, body, "application/x-npy"), 400, "not_a_picture")


@rows("accept", wire("text/html"), wire("image/png, text/*"), wire("application/json;q=0"))
def test_406_for_an_accept_header_without_a_supported_type(send, cat, accept):
    check_error(post(send, cat, Accept=accept), 406, "not_acceptable", "application/jsonlines")


@rows("", wire())
def test_413_for_a_body_over_25_mb(send):
    check_error(post(send, bytes(25_000_001)), 413, "too_large", "25 MB")


@rows()
def test_413_for_a_picture_over_50_megapixels(send):
    small_file = encode(Image.new("1", (10_000, 5_001)), "PNG")
    assert len(small_file) < 20_000
    check_error(post(send, small_file, "image/png"), 413, "too_large", "50 megapixels")
    check_error(post(send, b64(small_file)), 413, "too_large", "50 megapixels")


@rows(
    "content_type",
    wire("text/plain"),
    wire("multipart/form-data"),
    wire("application/x-www-form-urlencoded"),
)
def test_415_lists_what_is_accepted(send, cat, content_type):
    check_error(post(send, cat, content_type), 415, "unsupported_type", "image/*, application/x-image")


@rows("content_type", wire("multipart/form-data; boundary=x"), wire("application/x-www-form-urlencoded"))
def test_415_for_a_form_says_what_to_do(send, cat, content_type):
    check_error(post(send, cat, content_type), 415, "unsupported_type", "--data-binary @cat.jpg, not -F")


@rows("encoding", "gzip", "br", "identity, gzip", "é" * 900)
def test_415_for_a_content_encoding(send, cat, encoding):
    check_error(post(send, cat, Content_Encoding=encoding), 415, "unsupported_type", "Content-Encoding")


@rows("encoding", wire("identity"), "", "Identity ")
def test_a_body_that_is_not_encoded_may_say_so(send, cat, encoding):
    assert post(send, cat, Content_Encoding=encoding).status_code == 200


@rows(
    "body",
    wire(b"[" + b'{"":0},' * 100_000 + b"0]"),
    b'{"instances": [' + b"[]," * 150_000 + b"0]}",
    b'{"image": "' + b"," * 300_001 + b'"}',
    ('{"image": "' + "é" * 200_000 + '"}').encode(),
    json.dumps({"image": [0] * 400_000}).encode("utf-16"),
)
def test_413_for_json_of_much_else_than_base64(send, body):
    check_error(post(send, body, "application/json"), 413, "too_large", "300 kB beside the base64")


@rows("encoding", "utf-8", "utf-8-sig", "utf-16", "utf-32")
def test_json_of_much_base64_is_read(send, cat, encoding):
    padded = base64.b64encode(cat + bytes(400_000)).decode()
    for text in (padded, padded.replace("/", "\\/"), padded.replace("A", "A\\r\\n")):
        body = f'{{"instances": [{{"image": "{text}"}}]}}'.encode(encoding)
        assert post(send, body, "application/json").json()["predictions"] == [post(send, cat).json()]


@rows(
    "body",
    [],
    3,
    wire({}),
    {"image": 3},
    {"url": 3},
    {"image": "", "url": "http://x"},
    {"instances": []},
    {"instances": {}},
)
def test_422_for_json_without_a_picture(send, body):
    check_error(post(send, json.dumps(body).encode(), "application/json"), 422, "no_picture")


@rows()
def test_422_for_more_pictures_than_32(send):
    one = b64(encode(Image.new("RGB", (2, 2)), "PNG"))
    assert len(post(send, {"instances": [one] * 32}).json()["predictions"]) == 32
    check_error(post(send, {"instances": [one] * 33}), 422, "no_picture", "32")
    check_error(
        post(send, npy(np.zeros((33, 2, 2, 3), np.uint8)), "application/x-npy"), 422, "no_picture", "32"
    )


@rows("image", "*", "abc", "AAAA", base64.b64encode(b"no picture").decode())
def test_422_for_base64_that_is_not_a_picture(send, image):
    reply = post(send, {"image": image})
    assert (reply.status_code, reply.json()["error"]) in [(422, "no_picture"), (422, "not_a_picture")]


@rows("", wire())
def test_an_error_is_short_whatever_it_quotes(send):
    check_error(post(send, b"x", "é" * 900), 415, "unsupported_type")
    check_error(post(send, {"url": "http://" + "é" * 900}), 422, "address_failed")


@rows("address", wire("http://169.254.169.254/"), "http://127.0.0.1/", "file:///etc/passwd")
def test_422_for_an_address_that_is_not_public(send, address):
    check_error(post(send, {"url": address}), 422, "address_refused")


@rows("", wire())
def test_422_for_an_address_that_does_not_exist(send):
    check_error(post(send, {"url": "http://no-such-host.invalid/cat.jpg"}), 422, "address_failed")


# --- the documentation


def test_the_error_table_of_the_readme_has_the_statuses_and_codes_of_the_code():
    """serve/README.md against every RequestError of the code; inference.picture_error chooses among three."""
    code = "".join((ROOT / "serve" / name).read_text() for name in ("inference.py", "server.py"))
    raised = set(re.findall(r'RequestError\(\s*(\d{3}), "(\w+)"', code))
    raised |= {("400", "not_a_picture"), ("413", "too_large"), ("422", "not_a_picture")}
    documented = set()
    readme = (ROOT / "serve/README.md").read_text()
    for status, codes in re.findall(r"^\| (\d{3}) \| ([^|]+) \|", readme, re.MULTILINE):
        documented |= {(status, name) for name in re.findall(r"`(\w+)`", codes)}
    assert documented == raised


def test_the_limits_in_the_readme_are_those_of_the_code():
    readme = " ".join((ROOT / "serve/README.md").read_text().split())
    for limit in (
        f"over {inference.MAX_BODY // 10**6} MB, or a picture over {pixels.MAX_PIXELS // 10**6} megapixels",
        f"with 1 to {inference.MAX_PICTURES} of those",
        f"with up to {inference.MAX_PICTURES} pictures",
        f"is {inference.Batch.top_k} by default",
        f"not received within {server.BODY_SECONDS} s",
        f"{server.REQUEST_SLOTS} requests are being answered, "
        f"{server.SLOW_SLOTS} whose bodies take over {server.QUICK_SECONDS} s",
        f"or {inference.FETCH_SLOTS} that fetch addresses",
        f"http and https on ports {' and '.join(map(str, fetch.PORTS.values()))};",
        f"at most {fetch.MAX_REDIRECTS} redirects",
        f"{fetch.MAX_ADDRESS:,} characters, {fetch.MAX_HOST} of them for the host",
        f"JSON of more than {inference.MAX_JSON // 1000} kB beside its base64",
        f"at most {fetch.MAX_BYTES // 10**6} MB, waits {fetch.CONNECT_SECONDS} s for a connection",
        f"and {inference.FETCH_SECONDS} s for all addresses",
        f"`Connection: close` for {server.CLOSING_SECONDS} s",
        f"in flight for up to {server.DRAIN_SECONDS} s",
        f"closed after {server.KEEP_ALIVE_SECONDS} s",
    ):
        assert limit in readme
