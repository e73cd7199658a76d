"""client/predictor.py: what it sends, what it makes of answers and refusals, and when it tries again."""

import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

import predictor
from emulator import sagemaker_proxy
from predictor import SERVERLESS_LIMIT, ImagePredictor, PredictionError
from scripted_server import ANSWER, aws_error, model_error, reply, scripted

NOT_A_PICTURE = {"error": "not_a_picture", "message": "these bytes are no picture that can be read"}
NOT_LOADED = {"error": "not_loaded", "message": "the model is still loading; try again in a few seconds"}
BUSY = {"error": "busy", "message": "too many requests wait already: try again in a second"}


def encoded(kind, size=(40, 30), **options):
    """A small picture's bytes."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(predictor, "FIRST_WAIT", 0.01)
    monkeypatch.setitem(predictor.KINDS, "real-time", (predictor.REALTIME_LIMIT, 0.5))


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Credentials of nobody, a Region, and nothing of this machine's own AWS set-up."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return monkeypatch


def on_sagemaker(aws, url, **options):
    aws.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", url)
    return ImagePredictor("pets", **options)


def failure(call, *args, **kwargs):
    with pytest.raises(PredictionError) as caught:
        call(*args, **kwargs)
    return caught.value


# What is sent


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (encoded("JPEG"), "image/jpeg"),
        (encoded("PNG"), "image/png"),
        (encoded("WEBP"), "image/webp"),
        (encoded("GIF"), "image/gif"),
        (encoded("BMP"), "image/bmp"),
        (encoded("TIFF"), "image/tiff"),
        (b"something else", "application/octet-stream"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bytes_are_sent_as_they_are_with_the_type_they_show(body, content_type):
    with scripted(reply()) as server:
        assert ImagePredictor(url=server.url).predict(body, top_k=3) == ANSWER
    (request,) = server.requests
    assert (request.path, request.body) == ("/invocations", body)
    assert request.headers["Content-Type"] == content_type
    assert request.headers["Accept"] == "application/json"
    assert request.headers["X-Amzn-SageMaker-Custom-Attributes"] == "top_k=3"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read_and_its_wrong_suffix_does_not_matter(tmp_path, kind):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded("PNG"))
    assert predictor.pack(kind(path)) == (encoded("PNG"), "image/png")


def test_an_address_is_sent_for_the_endpoint_to_fetch():
    address = "HTTPS://example.org/cat.jpg?size=large"
    body, content_type = predictor.pack(address)
    assert (json.loads(body), content_type) == ({"url": address}, "application/json")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16", "CMYK", "YCbCr", "F"])
def test_an_image_is_sent_without_loss(mode):
    image = Image.linear_gradient("L").resize((40, 30)).convert("I" if mode == "I;16" else mode).convert(mode)
    body, content_type = predictor.pack(image)
    sent = Image.open(io.BytesIO(body))
    assert (content_type, sent.format) == ("image/png", "PNG")
    assert np.array_equal(np.asarray(sent.convert("RGB")), np.asarray(image.convert("RGB")))


def test_an_image_is_sent_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded("JPEG", exif=exif)))
    body, _ = predictor.pack(image)
    assert Image.open(io.BytesIO(body)).size == (30, 40)


def test_an_array_is_sent_as_npy():
    array = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)[:, ::-1]
    body, content_type = predictor.pack(array)
    assert content_type == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(body), allow_pickle=False), array)


@pytest.mark.parametrize(
    ("picture", "code", "words"),
    [
        ("no/such/cat.jpg", "unreadable", "cannot read no/such/cat.jpg: No such file"),
        (Path(__file__).parent, "unreadable", "Is a directory"),
        ("a\0b", "unreadable", "null"),
        (b"", "not_a_picture", "empty"),
        (None, "not_a_picture", "not NoneType"),
        (
            Image.open(io.BytesIO(encoded("JPEG", (99, 99))[:900])),
            "not_a_picture",
            "cannot be read: image file",
        ),
        (np.zeros((4, 5, 3)), "not_a_picture", "not float64 of shape (4, 5, 3)"),
        (np.zeros((4, 5), np.uint8), "not_a_picture", "not uint8 of shape (4, 5)"),
        (np.zeros((3, 4, 5), np.uint8), "not_a_picture", "shape (3, 4, 5)"),
        (np.zeros((0, 5, 3), np.uint8), "not_a_picture", "shape (0, 5, 3)"),
        (np.array([None]), "not_a_picture", "not object"),
    ],
)
def test_what_is_no_picture_is_refused_before_anything_is_sent(picture, code, words):
    with scripted(reply()) as server:
        error = failure(ImagePredictor(url=server.url).predict, picture)
    assert (error.code, error.status, server.requests) == (code, None, [])
    assert words in str(error)


# Scaled down


@cache
def photo(size=(1400, 1050)):
    """Smooth colours with a little grain, as photographs have them."""
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def sent(picture, **options):
    """The request that a picture becomes: its body and its Content-Type."""
    with scripted(reply()) as server:
        ImagePredictor(url=server.url, **options).predict(picture)
    (request,) = server.requests
    return request.body, request.headers["Content-Type"]


def looks_like(body, image):
    """Whether a JPEG of 1280 pixels shows this image."""
    small = Image.open(io.BytesIO(body))
    assert (small.format, small.mode, max(small.size), small.getexif()) == ("JPEG", "RGB", 1280, {})
    size = (small.width // 4, small.height // 4)
    one, other = (np.asarray(i.convert("RGB").resize(size), float) for i in (small, image))
    return np.abs(one - other).mean() < 1


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **{"quality": 98} | options)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "image", "array", "npy", "grey"]
)
def test_a_large_picture_is_sent_as_a_jpeg_of_1280_pixels(kind):
    image, array = photo(), np.asarray(photo())
    if kind == "grey":
        image, kind = image.convert("L"), "JPEG"
    given = {"image": image, "array": array, "npy": predictor.pack(array)[0]}
    if kind not in given:
        given[kind] = saved(image, kind)
        image = Image.open(io.BytesIO(given[kind]))  # as this format keeps it
    body, content_type = sent(given[kind])
    assert content_type == "image/jpeg"
    assert looks_like(body, image)


@pytest.mark.parametrize("kind", ["bytes", "image"])
def test_a_large_picture_is_sent_upright_and_the_callers_image_stays_as_it_was(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = saved(photo(), "JPEG", exif=exif)
    image = Image.open(io.BytesIO(picture))
    body, _ = sent(picture if kind == "bytes" else image)
    assert Image.open(io.BytesIO(body)).size == (960, 1280)
    assert looks_like(body, ImageOps.exif_transpose(image))
    assert (image.size, image.getexif()[0x0112]) == ((1400, 1050), 6)


def test_damaged_exif_leaves_a_picture_as_it_lies():
    picture = saved(photo(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    with pytest.raises(Exception):  # noqa: B017  whatever Pillow's reader raises today
        ImageOps.exif_transpose(Image.open(io.BytesIO(picture)))
    assert looks_like(sent(picture)[0], photo())


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_of_several_frames_the_first_is_sent(kind):
    frames = [photo(), Image.new("RGB", (1400, 1050), "red")]
    picture = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(picture)).n_frames == 2
    assert looks_like(sent(picture)[0], Image.open(io.BytesIO(picture)))


def test_transparency_hides_nothing_just_as_on_the_server():
    image = photo().convert("RGBA")
    image.putalpha(0)
    assert looks_like(sent(saved(image, "PNG"))[0], photo())


@pytest.mark.parametrize("wanted", ["L", "RGB", "array"])
def test_a_picture_that_is_not_large_keeps_every_pixel_and_is_not_decoded(monkeypatch, wanted):
    image = photo((1280, 960)).convert(wanted if wanted != "array" else "RGB")
    given = np.asarray(image) if wanted == "array" else saved(image, "JPEG")
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self) or load(self))
    assert sent(given) == predictor.pack(given)
    assert not decoded
    sent(given, shrink=1279)
    assert bool(decoded) == (wanted != "array")


@pytest.mark.parametrize(
    ("size", "small"), [((3000, 500), (3000, 500)), ((4000, 1280), (2000, 640)), ((1, 3000), (1, 3000))]
)
def test_a_panorama_keeps_its_height(size, small):
    assert Image.open(io.BytesIO(sent(Image.new("RGB", size))[0])).size == small


@pytest.mark.parametrize(
    "picture",
    [
        saved(photo(), "JPEG")[:50_000],
        saved(photo(), "PNG")[:50_000],
        saved(photo(), "JPEG2000"),
        b"\x93NUMPY" + b"x" * 1000,
        b"x" * 1000,
    ],
    ids=["half a JPEG", "half a PNG", "another format", "broken npy", "anything"],
)
def test_what_cannot_be_read_here_is_sent_for_the_server_to_judge(picture):
    assert sent(picture) == (picture, predictor.pack(picture)[1])


def test_nothing_is_scaled_down_where_that_is_not_wanted():
    picture = saved(photo(), "JPEG")
    assert sent(picture, shrink=0) == (picture, "image/jpeg")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent(photo(), shrink=0)[0]))), np.asarray(photo()))


def test_what_has_few_bytes_already_is_sent_as_it_is():
    picture = saved(Image.new("RGB", (1400, 1050), "red"), "WEBP")
    assert sent(picture) == (picture, "image/webp")


def test_an_address_is_left_alone_whatever_is_behind_it():
    body, content_type = sent("https://example.org/4000x3000.jpg", limit=10**6)
    assert (json.loads(body), content_type) == (
        {"url": "https://example.org/4000x3000.jpg"},
        "application/json",
    )


@pytest.mark.parametrize("shrink", [True, False, -1])
def test_shrink_is_a_number_of_pixels(shrink):
    with pytest.raises(ValueError, match="shrink is a number of pixels"):
        ImagePredictor(url="http://127.0.0.1:1", shrink=shrink)


# Over the limit


@pytest.mark.parametrize("kind", ["bytes", "image", "array"])
def test_a_picture_over_the_limit_is_scaled_down_further(kind):
    noise = np.random.default_rng(1).integers(0, 256, (300, 600, 3), np.uint8)
    picture = {"bytes": saved(Image.fromarray(noise), "PNG"), "image": Image.fromarray(noise), "array": noise}
    body, content_type = sent(picture[kind], limit=100_000)
    assert content_type == "image/jpeg"
    assert len(body) <= 100_000
    assert Image.open(io.BytesIO(body)).size == (256, 128)


def test_a_picture_over_the_limit_keeps_its_size_if_that_fits():
    image = photo((1000, 750))
    body, content_type = sent(image, limit=600_000)
    assert content_type == "image/jpeg"
    assert Image.open(io.BytesIO(body)).size == (1000, 750)


@pytest.mark.parametrize(
    "body", [b"x" * 1000, encoded("JPEG", (400, 400))[:1000], b"\x93NUMPY" + b"x" * 1000]
)
def test_too_large_and_not_readable_here_is_a_sentence(body):
    error = failure(ImagePredictor(url="http://127.0.0.1:1", limit=900).predict, body)
    assert error.code == "too_large"
    assert "over the limit of 900, and cannot be scaled down" in str(error)


def test_too_large_for_any_scale_is_a_sentence():
    error = failure(ImagePredictor(url="http://127.0.0.1:1", limit=900).predict, photo())
    assert (error.code, str(error).rpartition(": ")[2]) == (
        "too_large",
        "no picture of use fits into 900 bytes",
    )


def test_too_large_is_refused_where_scaling_is_not_wanted():
    only = ImagePredictor(url="http://127.0.0.1:1", limit=SERVERLESS_LIMIT, shrink=0)
    error = failure(only.predict, b"x" * 4_000_001)
    assert (error.code, str(error)) == ("too_large", "4,000,001 bytes are over the limit of 4,000,000")


# A plain server


@pytest.mark.parametrize("suffix", ["", "/", "/invocations"])
def test_the_address_may_end_in_several_ways(suffix):
    with scripted(reply()) as server:
        ImagePredictor(url=server.url + suffix).predict(b"x")
    assert server.requests[0].path == "/invocations"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "not_a_picture", "these bytes are no picture that can be read"),
        (413, "too_large", "the body is over 25 MB; send a smaller picture"),
        (415, "unsupported_type", "Content-Type 'text/plain' is not one of: image/jpeg, ..."),
        (422, "address_refused", "the address is not a public one"),
        (500, "internal", "the server failed; its log tells more under id 1a2b3c"),
    ],
)
def test_a_refusal_is_an_exception_with_the_servers_sentence_and_is_not_asked_again(status, code, message):
    with scripted(reply(status, {"error": code, "message": message})) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, str(error)) == (code, status, message)
    assert len(server.requests) == 1


@pytest.mark.parametrize("refusal", [NOT_LOADED, BUSY], ids=["loading", "busy"])
def test_a_server_that_is_not_ready_is_asked_again_after_the_time_it_names(refusal):
    with scripted(reply(503, refusal, Retry_After="1"), reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER
    first, second = server.requests
    assert second.at - first.at >= 1


def test_a_server_is_not_waited_for_as_long_as_it_may_wish(monkeypatch):
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 0.1)
    with scripted(reply(503, BUSY, Retry_After="3600"), reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER
    assert len(server.requests) == 2


def test_a_server_that_stays_busy_is_given_up(monkeypatch):
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 0.1)
    with scripted(reply(503, BUSY, Retry_After="2")) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, str(error)) == ("busy", 503, BUSY["message"])
    assert len(server.requests) == 5


def test_a_server_that_never_loads_is_given_up(quick):
    with scripted(reply(503, NOT_LOADED)) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, str(error)) == ("not_loaded", 503, NOT_LOADED["message"])
    assert len(server.requests) == 5


def test_a_cut_connection_is_tried_once_more():
    with scripted(reply(cut=True), reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER
    with scripted(reply(cut=True)) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, len(server.requests)) == ("unreachable", None, 2)


def test_a_slow_server_is_a_timeout():
    with scripted(reply(wait=0.6)) as server:
        error = failure(ImagePredictor(url=server.url, timeout=0.2).predict, b"x")
    assert (error.code, str(error)) == ("timeout", f"{server.url}/invocations did not answer within 0.2 s")


def test_nobody_there_is_a_sentence(quick):
    error = failure(ImagePredictor(url="http://127.0.0.1:1").predict, b"x")
    assert (error.code, error.status) == ("unreachable", None)
    assert str(error) == (
        "http://127.0.0.1:1/invocations cannot be reached (Connection refused); does the server run there?"
    )


def test_what_the_application_was_busy_with_is_not_taken_for_the_reason(quick):
    try:
        raise RuntimeError("something else")
    except RuntimeError:
        error = failure(ImagePredictor(url="http://127.0.0.1:1").predict, b"x")
    assert "(Connection refused)" in str(error)


def test_a_proxy_does_not_stand_before_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with scripted(reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            reply(200, "<html>\n<h1>It works</h1>"),
            "is it the right endpoint? It said: <html> <h1>It works</h1>",
        ),
        (reply(200, "[1]"), "It said: [1]"),
        (reply(200, {"predictions": []}), "no prediction"),
        (reply(404, "<h1>Not Found</h1>"), "status 404: <h1>Not Found</h1>"),
        (reply(404, {"detail": "Not Found"}), 'status 404: {"detail": "Not Found"}'),
        (reply(500, ""), "status 500: nothing more"),
        (reply(301, "", Location="https://example.org/"), "status 301"),
    ],
)
def test_whoever_does_not_speak_the_contract_is_quoted(step, words):
    with scripted(step) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert error.code == "unexpected"
    assert words in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("options", [{}, {"endpoint": "pets", "url": "http://127.0.0.1:1"}, {"endpoint": ""}])
def test_exactly_one_endpoint_must_be_named(options):
    with pytest.raises(ValueError, match="either endpoint"):
        ImagePredictor(**options)


def test_an_address_without_a_scheme_is_a_sentence():
    with pytest.raises(ValueError, match="starts with http"):
        ImagePredictor(url="localhost:8080")


# SageMaker


def test_sagemaker_is_asked_by_name(aws):
    with scripted(reply()) as server:
        assert on_sagemaker(aws, server.url).predict(encoded("JPEG"), top_k=2) == ANSWER
    (request,) = server.requests
    assert (request.path, request.body) == ("/endpoints/pets/invocations", encoded("JPEG"))
    assert request.headers["Content-Type"] == "image/jpeg"
    assert request.headers["Accept"] == "application/json"
    assert request.headers["X-Amzn-SageMaker-Custom-Attributes"] == "top_k=2"


def test_the_application_may_bring_its_own_session(aws):
    import boto3

    with scripted(reply()) as server:
        session = boto3.Session(region_name="us-east-1", aws_access_key_id="own", aws_secret_access_key="x")
        pets = on_sagemaker(aws, server.url, session=session)
        assert pets.predict(b"x") == ANSWER
    assert re.search("Credential=own/[0-9]+/us-east-1/", server.requests[0].headers["Authorization"])
    assert pets.where == f"endpoint pets in us-east-1 (taken for real-time) at {server.url}"


def test_amazons_own_address_need_not_be_said(aws):
    pets = ImagePredictor("pets", kind="serverless")
    assert (pets.where, pets.kind) == ("endpoint pets in eu-west-1 (serverless)", "serverless")


@pytest.mark.parametrize(
    "options", [{"endpoint": "pets", "kind": "batch"}, {"url": "http://x", "kind": "async"}]
)
def test_a_kind_is_one_of_those_on_sagemaker(options):
    with pytest.raises(
        ValueError, match=r"kind \(one of real-time, serverless, async\) is for an endpoint on"
    ):
        ImagePredictor(**options)


@pytest.mark.parametrize("status", [400, 500])
def test_a_model_error_is_the_servers_refusal_again(aws, status):
    with scripted(model_error(status, NOT_A_PICTURE)) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status) == ("not_a_picture", status)
    assert str(error) == NOT_A_PICTURE["message"]
    assert len(server.requests) == 1


def test_a_model_error_that_is_not_ours_is_quoted(aws):
    with scripted(model_error(504, "upstream timed out")) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status) == ("unexpected", 504)
    assert str(error) == "the server answered with status 504: upstream timed out"


def test_a_model_that_is_loading_is_asked_again(aws, quick):
    not_ready = aws_error(429, "ModelNotReadyException", "The model is not ready for inference.")
    with scripted(model_error(503, NOT_LOADED), not_ready, reply()) as server:
        assert on_sagemaker(aws, server.url).predict(b"x") == ANSWER
    with scripted(not_ready) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status) == ("not_loaded", 429)
    assert len(server.requests) > 2


def test_patience_is_what_the_application_says(aws, quick):
    with scripted(model_error(503, NOT_LOADED)) as server:
        error = failure(on_sagemaker(aws, server.url, patience=0).predict, b"x")
        assert (error.code, len(server.requests)) == ("not_loaded", 1)
        said = []
        pets = on_sagemaker(aws, server.url, patience=0.5, on_wait=said.append)
        started = time.monotonic()
        assert failure(pets.predict, b"x").code == "not_loaded"
        assert time.monotonic() - started >= 0.5
    assert set(said) == {"pets is still starting: it is asked again for up to 0 s"}


def test_a_busy_server_behind_sagemaker_is_asked_again(aws, quick):
    listener = socket.create_server(("127.0.0.1", 0))
    steps = [reply(503, BUSY), reply(503, BUSY), reply(), reply(503, BUSY)]
    with scripted(*steps) as server, sagemaker_proxy.proxy(listener, server.url, "plain"):
        pets = on_sagemaker(aws, f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert pets.predict(b"x") == ANSWER
        assert len(server.requests) == 3
        error = failure(pets.predict, b"x")
    assert (error.code, error.status, str(error)) == ("busy", 503, BUSY["message"])
    assert len(server.requests) > 3 + 2


def test_throttling_is_waited_out(aws):
    with scripted(aws_error(400, "ThrottlingException", "Rate exceeded"), reply()) as server:
        assert on_sagemaker(aws, server.url).predict(b"x") == ANSWER


@pytest.mark.parametrize(
    ("status", "code", "said", "advice"),
    [
        (400, "ValidationError", "Endpoint pets of account 123456789012 not found.", "list-endpoints"),
        (403, "AccessDeniedException", "User: x is not authorized to perform: y", "sagemaker:InvokeEndpoint"),
        (
            403,
            "ExpiredTokenException",
            "The security token included in the request is expired",
            "aws sso login",
        ),
        (403, "UnrecognizedClientException", "The security token is invalid.", "aws configure"),
        (418, "Teapot", "Short and stout", ""),
    ],
)
def test_what_aws_refuses_comes_with_advice_and_is_not_asked_again(aws, status, code, said, advice):
    with scripted(aws_error(status, code, said)) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status, len(server.requests)) == ("aws", status, 1)
    assert str(error).startswith(said.rstrip("."))
    assert advice in str(error)


def test_missing_credentials_are_a_sentence(aws):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    error = failure(on_sagemaker(aws, "http://127.0.0.1:1").predict, b"x")
    assert error.code == "aws"
    assert str(error).startswith("Unable to locate credentials; check `aws sts get-caller-identity`")


@pytest.mark.parametrize(
    ("name", "value", "advice"), [("REGION", "", "set AWS_DEFAULT_REGION"), ("PROFILE", "x", "list")]
)
def test_an_aws_set_up_that_lacks_something_is_a_sentence(aws, name, value, advice):
    aws.delenv("AWS_DEFAULT_REGION")
    aws.setenv(f"AWS_{name}", value)
    error = failure(ImagePredictor, "pets")
    assert error.code == "aws"
    assert advice in str(error)


def test_aws_out_of_reach_or_slow_is_a_sentence(aws):
    error = failure(on_sagemaker(aws, "http://127.0.0.1:1").predict, b"x")
    assert (error.code, error.status) == ("unreachable", None)
    with scripted(reply(wait=0.6)) as server:
        error = failure(on_sagemaker(aws, server.url, timeout=0.2).predict, b"x")
    assert (error.code, error.status) == ("timeout", None)


# Many


def by_body(body):
    """Later pictures answer sooner; b"bad" is none."""
    if body == b"bad":
        return reply(400, NOT_A_PICTURE)
    return reply(body={**ANSWER, "class": body.decode()}, wait=0.2 / int(body))


def test_many_keep_their_order_and_their_own_errors():
    pictures = [b"1", b"2", "no/such/file", b"bad", b"5", b"6"]
    with scripted(answer=by_body) as server:
        answers = list(ImagePredictor(url=server.url).predict_many(pictures, concurrency=6))
    assert [a["class"] if isinstance(a, dict) else a.code for a in answers] == [
        "1", "2", "unreadable", "not_a_picture", "5", "6",
    ]  # fmt: skip


def test_many_read_a_generator_only_a_little_ahead():
    taken = []
    endless = (taken.append(n) or b"9" for n in range(10**9))
    with scripted(reply()) as server:
        answers = ImagePredictor(url=server.url).predict_many(endless, concurrency=3)
        assert taken == []
        assert [next(answers) for _ in range(5)] == [ANSWER] * 5
        answers.close()
    assert len(taken) <= 5 + 2 * 3


# As an application has it


def test_the_file_works_alone_without_boto3_pillow_and_numpy(tmp_path):
    shutil.copy(predictor.__file__, tmp_path)
    script = tmp_path / "app.py"
    script.write_text(
        "import sys\n"
        "for name in ('boto3', 'botocore', 'PIL', 'numpy', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "from predictor import ImagePredictor\n"
        "print(ImagePredictor(url=sys.argv[1]).predict('large.jpg')['class'])\n"
    )
    photo().save(tmp_path / "large.jpg")
    with scripted(reply()) as server:
        done = subprocess.run(
            [sys.executable, script, server.url], cwd=tmp_path, capture_output=True, text=True
        )
    assert (done.stdout, done.stderr) == ("cat\n", "")
    assert server.requests[0].body == (tmp_path / "large.jpg").read_bytes()


def test_a_picture_gets_the_same_class_however_it_is_given(endpoint):
    entry = json.loads((endpoint.project / "train/validation.json").read_text())[0]
    path = endpoint.project / "train" / entry["file"]
    image = Image.open(path)
    array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pictures = [path, str(path), path.read_bytes(), image, array]
    answers = list(ImagePredictor(url=endpoint.url).predict_many(pictures, top_k=2))
    assert {answer["class"] for answer in answers} == set(entry["predicted"])
    assert all(len(answer["predictions"]) == 2 for answer in answers)
    one, *others = (answer["confidence"] for answer in answers)
    assert others == [pytest.approx(one, abs=1e-3)] * 4
    assert one == pytest.approx(entry["confidence"], abs=0.05)  # bf16 where the chip has it


def test_a_large_picture_has_the_answer_of_the_whole_one(endpoint):
    entries = json.loads((endpoint.project / "train/validation.json").read_text())
    large = []
    for entry in entries[:12]:
        file = io.BytesIO((endpoint.project / "train" / entry["file"]).read_bytes())
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        large.append(ImageOps.contain(image, (1800, 1800)))
    whole, shrunk = (ImagePredictor(url=endpoint.url, shrink=shrink) for shrink in (0, 1280))
    for one, other in zip(whole.predict_many(large), shrunk.predict_many(large), strict=True):
        first, second = (prediction["confidence"] for prediction in one["predictions"][:2])
        assert one["class"] == other["class"] or first - second < 0.2
        assert first == pytest.approx(other["confidence"], abs=0.1)


def test_boto3_and_requests_get_the_same_answers_and_refusals(endpoint, aws):
    pictures = sorted((endpoint.project / "train/pictures").iterdir())[:3]
    plain, sagemaker = ImagePredictor(url=endpoint.url), on_sagemaker(aws, endpoint.url)
    assert list(plain.predict_many(pictures)) == list(sagemaker.predict_many(pictures))
    errors = [failure(p.predict, b"no picture") for p in (plain, sagemaker)]
    assert {(e.code, e.status, str(e)) for e in errors} == {("not_a_picture", 400, str(errors[0]))}
