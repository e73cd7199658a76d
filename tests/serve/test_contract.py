"""The HTTP contract, row by row, over real HTTP: the plain server, Ray Serve, and the image in Docker."""

import base64
import io
import json

import numpy as np
import pytest
import requests
from PIL import Image


@pytest.fixture(scope="module", params=["plain", "ray", "docker"])
def url(request: pytest.FixtureRequest) -> str:
    name = {"plain": "endpoint", "ray": "ray_endpoint", "docker": "docker_endpoint"}[request.param]
    return request.getfixturevalue(name).url


@pytest.fixture(scope="module")
def cat(project) -> bytes:
    """A validation picture, as JPEG."""
    return encode(Image.open(next(iter(sorted((project / "train" / "pictures").iterdir())))).convert("RGB"))


def encode(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def post(url: str, body: bytes | dict, content_type: str = "image/jpeg", **headers: str) -> requests.Response:
    if not isinstance(body, bytes):
        body, content_type = json.dumps(body).encode(), "application/json"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(
        f"{url}/invocations", body, headers={"Content-Type": content_type, **headers}, timeout=60
    )


def b64(data: bytes) -> dict:
    return {"image": base64.b64encode(data).decode()}


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=pickled)
    return out.getvalue()


def check_error(reply: requests.Response, status: int, code: str, says: str = "") -> None:
    """The status, the code, and a sentence that is short and no traceback."""
    assert (reply.status_code, reply.json()["error"]) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"error", "message"}
    assert says in reply.json()["message"]
    assert len(reply.content) < 1024
    assert "Traceback" not in reply.text
    assert "File " not in reply.text


def test_ping_is_200_and_empty(url):
    reply = requests.get(f"{url}/ping", timeout=10)
    assert (reply.status_code, reply.content) == (200, b"")


def test_one_picture_has_one_answer_best_first(url, cat):
    answer = post(url, cat).json()
    assert set(answer) == {"class", "confidence", "predictions"}
    assert answer["predictions"][0] == {"class": answer["class"], "confidence": answer["confidence"]}
    confidences = [p["confidence"] for p in answer["predictions"]]
    assert confidences == sorted(confidences, reverse=True)
    assert sum(confidences) == pytest.approx(1, abs=1e-4)
    assert {p["class"] for p in answer["predictions"]} == {"Cat", "Dog", "Owl", "Rabbit"}


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("PNG", "image/x-whatever"),
        ("PNG", "IMAGE/PNG; charset=binary"),
        ("PNG", "application/x-image"),
        ("PNG", "application/octet-stream"),
        ("PNG", ""),
    ],
)
def test_every_picture_type_is_read(url, kind, content_type):
    picture = Image.new("RGB", (60, 80), (200, 120, 40))
    assert post(url, encode(picture, kind), content_type).json()["predictions"]


def test_the_bytes_count_not_the_name_of_their_type(url, cat):
    assert post(url, cat, "image/png").json() == post(url, cat, "image/jpeg").json()


def test_json_image_answers_as_the_bytes_do(url, cat):
    assert post(url, b64(cat)).json() == post(url, cat).json()


def test_npy_answers_as_the_picture_does(url, cat):
    array = np.asarray(Image.open(io.BytesIO(cat)))
    assert post(url, npy(array), "application/x-npy").json() == post(url, cat).json()


def test_several_pictures_come_back_in_order_and_a_bad_one_spoils_none(url, cat):
    grey = encode(Image.new("RGB", (50, 50), "grey"), "PNG")
    instances = [b64(cat), b64(b"no picture"), {"what": 1}, b64(grey), {"image": "abc"}, b64(cat[:300]), "x"]
    answers = post(url, {"instances": instances}).json()["predictions"]
    assert [a.get("error") for a in answers] == [
        None, "not_a_picture", "no_picture", None, "no_picture", "not_a_picture", "no_picture",
    ]  # fmt: skip
    alone = [post(url, cat).json(), post(url, grey, "image/png").json()]
    assert [answers[0]["class"], answers[3]["class"]] == [a["class"] for a in alone]
    assert answers[0]["confidence"] == pytest.approx(alone[0]["confidence"], abs=1e-4)


def test_an_array_of_several_pictures_is_a_batch(url):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), np.uint8)
    assert len(post(url, npy(pictures), "application/x-npy").json()["predictions"]) == 3


@pytest.mark.parametrize("n", [1, 2, 99])
def test_top_k_in_json(url, cat, n):
    assert len(post(url, b64(cat) | {"top_k": n}).json()["predictions"]) == min(n, 4)


@pytest.mark.parametrize("attributes", ["top_k=2", "trace=abc, top_k = 2"])
def test_top_k_in_the_custom_attributes(url, cat, attributes):
    reply = post(url, cat, X_Amzn_SageMaker_Custom_Attributes=attributes)
    assert len(reply.json()["predictions"]) == 2


def test_top_k_in_json_beats_the_header(url, cat):
    reply = post(url, b64(cat) | {"top_k": 1}, X_Amzn_SageMaker_Custom_Attributes="top_k=3")
    assert len(reply.json()["predictions"]) == 1


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "x", None, [2]])
def test_a_top_k_that_is_no_whole_number_from_1(url, cat, value):
    check_error(post(url, b64(cat) | {"top_k": value}), 422, "bad_top_k")


def test_a_custom_attribute_top_k_that_is_no_number(url, cat):
    check_error(post(url, cat, X_Amzn_SageMaker_Custom_Attributes="top_k=many"), 422, "bad_top_k", "many")


@pytest.mark.parametrize(
    "accept", ["*/*", "*", "application/json", "application/*", "text/html, application/json;q=0.5"]
)
def test_json_is_what_most_accept_headers_get(url, cat, accept):
    assert post(url, cat, Accept=accept).headers["content-type"] == "application/json"


def test_jsonlines_has_a_line_per_picture(url, cat):
    reply = post(url, {"instances": [b64(cat), b64(b"x")]}, Accept="application/jsonlines")
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert reply.headers["content-type"] == "application/jsonlines"
    assert lines[0]["class"] == post(url, cat).json()["class"]
    assert lines[1]["error"] == "not_a_picture"


def test_npy_has_every_probability_as_float32_and_nan_for_a_bad_picture(url, cat):
    reply = post(url, {"instances": [b64(cat), b64(b"x")]}, Accept="application/x-npy")
    probabilities = np.load(io.BytesIO(reply.content), allow_pickle=False)
    assert (probabilities.shape, probabilities.dtype) == ((2, 4), np.float32)
    assert probabilities[0].sum() == pytest.approx(1, abs=1e-5)
    assert np.isnan(probabilities[1]).all()


@pytest.mark.parametrize("body", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", bytes(1000)])
def test_400_for_what_is_no_picture(url, body):
    check_error(post(url, body), 400, "not_a_picture")


def test_400_for_a_truncated_picture(url, cat):
    check_error(post(url, cat[: len(cat) // 2]), 400, "not_a_picture", "truncated")


@pytest.mark.parametrize("body", [b"", b"{", b"[1,", b"\xff", b"[" * 100_000])
def test_400_for_broken_json(url, body):
    check_error(post(url, body, "application/json"), 400, "bad_json")


@pytest.mark.parametrize(
    "body",
    [
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
    ],
)  # fmt: skip
def test_400_for_an_array_that_is_no_picture_or_lies_about_its_size(url, body):
    check_error(post(url, body, "application/x-npy"), 400, "not_a_picture")


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/*", "application/json;q=0"])
def test_406_for_an_accept_header_without_ours(url, cat, accept):
    check_error(post(url, cat, Accept=accept), 406, "not_acceptable", "application/jsonlines")


def test_413_for_a_body_over_25_mb(url):
    check_error(post(url, bytes(25_000_001)), 413, "too_large", "25 MB")


def test_413_for_a_picture_over_50_megapixels(url):
    small_file = encode(Image.new("1", (10_000, 5_001)), "PNG")
    assert len(small_file) < 20_000
    check_error(post(url, small_file, "image/png"), 413, "too_large", "50 megapixels")
    check_error(post(url, b64(small_file)), 413, "too_large", "50 megapixels")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded"]
)
def test_415_lists_what_is_accepted(url, cat, content_type):
    check_error(post(url, cat, content_type), 415, "unsupported_type", "image/*, application/x-image")


@pytest.mark.parametrize(
    "body",
    [
        [],
        3,
        {},
        {"image": 3},
        {"url": 3},
        {"image": "", "url": "http://x"},
        {"instances": []},
        {"instances": {}},
    ],
)
def test_422_for_json_without_a_picture(url, body):
    check_error(post(url, json.dumps(body).encode(), "application/json"), 422, "no_picture")


def test_422_for_more_pictures_than_32(url):
    one = b64(encode(Image.new("RGB", (2, 2)), "PNG"))
    assert len(post(url, {"instances": [one] * 32}).json()["predictions"]) == 32
    check_error(post(url, {"instances": [one] * 33}), 422, "no_picture", "32")
    check_error(
        post(url, npy(np.zeros((33, 2, 2, 3), np.uint8)), "application/x-npy"), 422, "no_picture", "32"
    )


@pytest.mark.parametrize("image", ["*", "abc", "AAAA", base64.b64encode(b"no picture").decode()])
def test_422_for_base64_that_is_no_picture(url, image):
    reply = post(url, {"image": image})
    assert (reply.status_code, reply.json()["error"]) in [(422, "no_picture"), (422, "not_a_picture")]


def test_an_error_stays_short_whatever_it_quotes(url):
    check_error(post(url, b"x", "é" * 900), 415, "unsupported_type")
    check_error(post(url, {"url": "http://" + "é" * 900}), 422, "address_failed")


@pytest.mark.parametrize("address", ["http://169.254.169.254/", "http://127.0.0.1/", "file:///etc/passwd"])
def test_422_for_an_address_inside(url, address):
    check_error(post(url, {"url": address}), 422, "address_refused")


def test_422_for_an_address_that_does_not_exist(url):
    check_error(post(url, {"url": "http://no-such-host.invalid/cat.jpg"}), 422, "address_failed")
