"""client/predictor.py: what it sends, how it reads answers and errors, and when it retries."""

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
BUSY = {"error": "busy", "message": "too many requests at once: try again in a second"}


def encoded(kind, size=(40, 30), **options):
    """A small picture's bytes."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(predictor, "FIRST_WAIT", 0.01)
    monkeypatch.setitem(predictor.KINDS, "real-time", (predictor.REALTIME_LIMIT, 0.5))


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Example credentials, a Region, and nothing of this machine's own AWS configuration."""
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
def test_bytes_are_sent_unchanged_with_the_type_of_their_signature(body, content_type):
    with scripted(reply()) as server:
        assert ImagePredictor(url=server.url).predict(body, top_k=3) == ANSWER
    (request,) = server.requests
    assert (request.path, request.body) == ("/invocations", body)
    assert request.headers["Content-Type"] == content_type
    assert request.headers["Accept"] == "application/json"
    assert request.headers["X-Amzn-SageMaker-Custom-Attributes"] == "top_k=3"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read_and_its_suffix_is_ignored(tmp_path, kind):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded("PNG"))
    assert predictor.pack(kind(path)) == (encoded("PNG"), "image/png")


def test_an_address_is_sent_as_json():
    address = "HTTPS://example.org/cat.jpg?size=large"
    body, content_type = predictor.pack(address)
    assert (json.loads(body), content_type) == ({"url": address}, "application/json")


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_an_image_is_sent_without_loss(mode):
    image = Image.linear_gradient("L").resize((40, 30)).convert(mode)
    body, content_type = predictor.pack(image)
    sent = Image.open(io.BytesIO(body))
    assert (content_type, sent.format) == ("image/png", "PNG")
    assert np.array_equal(np.asarray(sent.convert("RGB")), np.asarray(image.convert("RGB")))


def deep(mode, size=(40, 30)):
    """A picture whose values need more than 8 bits, or are no whole numbers."""
    values = np.arange(size[0] * size[1]).reshape(size[::-1])
    if mode == "F":
        return Image.fromarray((values / 7 - 9).astype(np.float32))
    if mode == "I":
        return Image.fromarray((values * 100_000).astype(np.int32))
    kind = {"I;16": "<u2", "I;16B": ">u2"}[mode]
    return Image.frombytes(mode, size, (values % 65536).astype(kind).tobytes())


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "PNG"), ("I;16B", "TIFF"), ("I", "TIFF"), ("F", "TIFF")])
def test_an_image_with_more_than_8_bits_keeps_its_values(mode, kind):
    body, content_type = predictor.pack(deep(mode))
    sent = Image.open(io.BytesIO(body))
    assert (content_type, sent.format, sent.mode) == (f"image/{kind.lower()}", kind, mode)
    assert np.array_equal(np.asarray(sent), np.asarray(deep(mode)))


def test_an_image_is_sent_with_its_orientation_and_not_rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    image = Image.open(io.BytesIO(encoded("JPEG", exif=exif)))
    sent = Image.open(io.BytesIO(predictor.pack(image)[0]))
    assert (sent.size, dict(sent.getexif())) == ((40, 30), {0x0112: 6})
    assert np.array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize(
    ("head", "refused"),
    [
        (b"ftypheic\0\0\0\0mif1heic", True),
        (b"ftyphevc\0\0\0\0hevc", True),
        (b"ftypmif1\0\0\0\0mif1heic", True),
        (b"ftypmif1\0\0\0\0mif1avif", True),
        (b"ftypavif\0\0\0\0avifmif1", True),
        (b"ftypmif1\0\0\0\0mif1", False),
        (b"ftypmp42\0\0\0\0mp42isom", False),
    ],
)
def test_heic_and_avif_are_refused_before_anything_is_sent(tmp_path, head, refused):
    picture = (len(head) + 4).to_bytes(4) + head + b"\0\0\0\x08heic"
    (tmp_path / "iphone.jpg").write_bytes(picture)
    with scripted(reply()) as server:
        only = ImagePredictor(url=server.url)
        if not refused:
            assert only.predict(picture) == ANSWER
            return
        errors = [failure(only.predict, one) for one in (picture, tmp_path / "iphone.jpg")]
    assert {(error.code, str(error)) for error in errors} == {
        ("not_a_picture", "HEIC and AVIF pictures cannot be read: convert them to JPEG")
    }
    assert server.requests == []


def test_an_array_is_sent_as_npy():
    array = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)[:, ::-1]
    body, content_type = predictor.pack(array)
    assert content_type == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(body), allow_pickle=False), array)


@pytest.mark.parametrize(
    ("picture", "code", "text"),
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
def test_something_else_than_a_picture_is_rejected_before_anything_is_sent(picture, code, text):
    with scripted(reply()) as server:
        error = failure(ImagePredictor(url=server.url).predict, picture)
    assert (error.code, error.status, server.requests) == (code, None, [])
    assert text in str(error)


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
    """Whether the body is a JPEG of 1280 pixels that shows this image, without EXIF."""
    small, mode = Image.open(io.BytesIO(body)), "L" if image.mode in ("1", "L", "LA") else "RGB"
    assert (small.format, small.mode, max(small.size), small.getexif()) == ("JPEG", mode, 1280, {})
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
        image = Image.open(io.BytesIO(given[kind]))  # as this format stores it
    body, content_type = sent(given[kind])
    assert content_type == "image/jpeg"
    assert looks_like(body, image)


@pytest.mark.parametrize("kind", ["bytes", "image"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_large_picture_is_sent_with_its_orientation_and_not_rotated(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    picture = saved(photo(), "JPEG", exif=exif)
    image = Image.open(io.BytesIO(picture))
    sent_as = Image.open(io.BytesIO(sent(picture if kind == "bytes" else image)[0]))
    assert (sent_as.size, dict(sent_as.getexif())) == ((1280, 960), {0x0112: orientation})
    stored = saved(sent_as, "JPEG", exif=b"")
    assert looks_like(stored, photo())
    assert (image.size, dict(image.getexif())) == ((1400, 1050), {0x0112: orientation, 0x010F: "a camera"})


def test_a_tiff_is_sent_rotated_because_every_server_reads_it_so():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = saved(photo(), "TIFF", exif=exif)
    small = Image.open(io.BytesIO(sent(picture)[0]))
    assert (small.size, dict(small.getexif())) == ((960, 1280), {})


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_picture_with_more_than_8_bits_is_never_scaled_down(mode):
    file = io.BytesIO()
    deep(mode, (1400, 1050)).save(file, "TIFF")
    assert sent(file.getvalue()) == (file.getvalue(), "image/tiff")
    assert Image.open(io.BytesIO(sent(deep(mode, (1400, 1050)))[0])).size == (1400, 1050)
    error = failure(ImagePredictor(url="http://127.0.0.1:1", limit=10**6).predict, file.getvalue())
    assert (error.code, str(error)) == (
        "too_large",
        f"{len(file.getvalue()):,} bytes are over the limit of 1,000,000, and cannot be scaled down: "
        "a picture of 16 bits or floats per pixel would lose its values",
    )


def test_a_picture_with_damaged_exif_is_not_rotated():
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


def test_transparency_is_dropped_as_on_the_server():
    image = photo().convert("RGBA")
    image.putalpha(0)
    assert looks_like(sent(saved(image, "PNG"))[0], photo())


@pytest.mark.parametrize("mode", ["L", "RGB", "array"])
def test_a_picture_that_is_not_large_keeps_every_pixel_and_is_not_decoded(monkeypatch, mode):
    image = photo((1280, 960)).convert(mode if mode != "array" else "RGB")
    given = np.asarray(image) if mode == "array" else saved(image, "JPEG")
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self) or load(self))
    assert sent(given) == predictor.pack(given)
    assert not decoded
    sent(given, shrink=1279)
    assert bool(decoded) == (mode != "array")


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
def test_unreadable_bytes_are_sent_unchanged(picture):
    assert sent(picture) == (picture, predictor.pack(picture)[1])


def test_shrink_0_sends_every_pixel():
    picture = saved(photo(), "JPEG")
    assert sent(picture, shrink=0) == (picture, "image/jpeg")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent(photo(), shrink=0)[0]))), np.asarray(photo()))


def test_a_picture_that_a_jpeg_would_not_make_smaller_is_sent_unchanged():
    picture = saved(Image.new("RGB", (1400, 1050), "red"), "WEBP")
    assert sent(picture) == (picture, "image/webp")


def test_an_address_is_sent_unchanged_whatever_the_limit():
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
def test_too_large_and_unreadable_is_an_error(body):
    error = failure(ImagePredictor(url="http://127.0.0.1:1", limit=900).predict, body)
    assert error.code == "too_large"
    assert "over the limit of 900, and cannot be scaled down" in str(error)


def test_too_large_at_any_scale_is_an_error():
    error = failure(ImagePredictor(url="http://127.0.0.1:1", limit=900).predict, photo())
    assert (error.code, str(error).rpartition(": ")[2]) == (
        "too_large",
        "no usable size fits into 900 bytes",
    )


def test_too_large_with_shrink_0_is_an_error():
    only = ImagePredictor(url="http://127.0.0.1:1", limit=SERVERLESS_LIMIT, shrink=0)
    error = failure(only.predict, b"x" * 4_000_001)
    assert (error.code, str(error)) == ("too_large", "4,000,001 bytes are over the limit of 4,000,000")


# A plain server


@pytest.mark.parametrize("suffix", ["", "/", "/invocations"])
def test_the_address_may_end_in_a_slash_or_invocations(suffix):
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
def test_an_error_has_the_servers_message_and_is_not_retried(status, code, message):
    with scripted(reply(status, {"error": code, "message": message})) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, str(error)) == (code, status, message)
    assert len(server.requests) == 1


@pytest.mark.parametrize("refusal", [NOT_LOADED, BUSY], ids=["loading", "busy"])
def test_a_server_that_is_not_ready_is_retried_after_its_retry_after(refusal):
    with scripted(reply(503, refusal, Retry_After="1"), reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER
    first, second = server.requests
    assert second.at - first.at >= 1


def test_a_long_retry_after_is_cut(monkeypatch):
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 0.1)
    with scripted(reply(503, BUSY, Retry_After="3600"), reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER
    assert len(server.requests) == 2


def test_retries_of_a_busy_server_end(monkeypatch):
    monkeypatch.setattr(predictor, "LONGEST_WAIT", 0.1)
    with scripted(reply(503, BUSY, Retry_After="2")) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, str(error)) == ("busy", 503, BUSY["message"])
    assert len(server.requests) == 5


def test_retries_of_a_server_that_never_loads_end(short_waits):
    with scripted(reply(503, NOT_LOADED)) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, str(error)) == ("not_loaded", 503, NOT_LOADED["message"])
    assert len(server.requests) == 5


def test_a_cut_connection_is_retried_once():
    with scripted(reply(cut=True), reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER
    with scripted(reply(cut=True)) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert (error.code, error.status, len(server.requests)) == ("unreachable", None, 2)


def test_a_slow_server_is_a_timeout():
    with scripted(reply(wait=0.6)) as server:
        error = failure(ImagePredictor(url=server.url, timeout=0.2).predict, b"x")
    assert (error.code, str(error)) == ("timeout", f"{server.url}/invocations did not answer within 0.2 s")


def test_a_refused_connection_is_unreachable(short_waits):
    error = failure(ImagePredictor(url="http://127.0.0.1:1").predict, b"x")
    assert (error.code, error.status) == ("unreachable", None)
    assert str(error) == (
        "http://127.0.0.1:1/invocations cannot be reached (Connection refused); is the server running?"
    )


def test_an_exception_that_the_caller_is_handling_is_not_the_reason(short_waits):
    try:
        raise RuntimeError("something else")
    except RuntimeError:
        error = failure(ImagePredictor(url="http://127.0.0.1:1").predict, b"x")
    assert "(Connection refused)" in str(error)


def test_no_proxy_is_used_for_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with scripted(reply()) as server:
        assert ImagePredictor(url=server.url).predict(b"x") == ANSWER


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (
            reply(200, "<html>\n<h1>It works</h1>"),
            "not a prediction: <html> <h1>It works</h1>; is this the right endpoint?",
        ),
        (reply(200, "[1]"), "not a prediction: [1];"),
        (reply(200, {"predictions": []}), "not a prediction"),
        (reply(404, "<h1>Not Found</h1>"), "status 404: <h1>Not Found</h1>"),
        (reply(404, {"detail": "Not Found"}), 'status 404: {"detail": "Not Found"}'),
        (reply(500, ""), "status 500: no message"),
        (reply(301, "", Location="https://example.org/"), "status 301"),
    ],
)
def test_an_answer_outside_the_contract_is_quoted(step, text):
    with scripted(step) as server:
        error = failure(ImagePredictor(url=server.url).predict, b"x")
    assert error.code == "unexpected"
    assert text in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("options", [{}, {"endpoint": "pets", "url": "http://127.0.0.1:1"}, {"endpoint": ""}])
def test_either_endpoint_or_url_is_required(options):
    with pytest.raises(ValueError, match="either endpoint"):
        ImagePredictor(**options)


def test_an_address_without_a_scheme_is_an_error():
    with pytest.raises(ValueError, match="starts with http"):
        ImagePredictor(url="localhost:8080")


# SageMaker


def test_invoke_endpoint_is_called_with_the_name(aws):
    with scripted(reply()) as server:
        assert on_sagemaker(aws, server.url).predict(encoded("JPEG"), top_k=2) == ANSWER
    (request,) = server.requests
    assert (request.path, request.body) == ("/endpoints/pets/invocations", encoded("JPEG"))
    assert request.headers["Content-Type"] == "image/jpeg"
    assert request.headers["Accept"] == "application/json"
    assert request.headers["X-Amzn-SageMaker-Custom-Attributes"] == "top_k=2"


def test_the_callers_session_is_used(aws):
    import boto3

    with scripted(reply()) as server:
        session = boto3.Session(region_name="us-east-1", aws_access_key_id="own", aws_secret_access_key="x")
        pets = on_sagemaker(aws, server.url, session=session)
        assert pets.predict(b"x") == ANSWER
    assert re.search("Credential=own/[0-9]+/us-east-1/", server.requests[0].headers["Authorization"])
    assert pets.description == f"endpoint pets in us-east-1 (assumed real-time) at {server.url}"


def test_the_description_omits_amazons_own_address(aws):
    pets = ImagePredictor("pets", kind="serverless")
    assert (pets.description, pets.kind) == ("endpoint pets in eu-west-1 (serverless)", "serverless")


@pytest.mark.parametrize(
    "options", [{"endpoint": "pets", "kind": "batch"}, {"url": "http://x", "kind": "async"}]
)
def test_a_kind_must_be_one_of_sagemakers(options):
    with pytest.raises(
        ValueError, match=r"kind \(one of real-time, serverless, async\) is for an endpoint on"
    ):
        ImagePredictor(**options)


@pytest.mark.parametrize("status", [400, 500])
def test_a_model_error_is_the_servers_own_error(aws, status):
    with scripted(model_error(status, NOT_A_PICTURE)) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status) == ("not_a_picture", status)
    assert str(error) == NOT_A_PICTURE["message"]
    assert len(server.requests) == 1


def test_a_model_error_outside_the_contract_is_quoted(aws):
    with scripted(model_error(504, "upstream timed out")) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status) == ("unexpected", 504)
    assert str(error) == "the server answered with status 504: upstream timed out"


def test_a_loading_model_is_retried(aws, short_waits):
    not_ready = aws_error(429, "ModelNotReadyException", "The model is not ready for inference.")
    with scripted(model_error(503, NOT_LOADED), not_ready, reply()) as server:
        assert on_sagemaker(aws, server.url).predict(b"x") == ANSWER
    with scripted(not_ready) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status) == ("not_loaded", 429)
    assert len(server.requests) > 2


def test_max_wait_limits_the_retries(aws, short_waits):
    with scripted(model_error(503, NOT_LOADED)) as server:
        error = failure(on_sagemaker(aws, server.url, max_wait=0).predict, b"x")
        assert (error.code, len(server.requests)) == ("not_loaded", 1)
        sentences = []
        pets = on_sagemaker(aws, server.url, max_wait=0.5, on_wait=sentences.append)
        started = time.monotonic()
        assert failure(pets.predict, b"x").code == "not_loaded"
        assert time.monotonic() - started >= 0.5
    assert set(sentences) == {"pets is still starting: retrying for up to 0 s"}


def test_a_busy_server_behind_sagemaker_is_retried(aws, short_waits):
    listener = socket.create_server(("127.0.0.1", 0))
    steps = [reply(503, BUSY), reply(503, BUSY), reply(), reply(503, BUSY)]
    with scripted(*steps) as server, sagemaker_proxy.proxy(listener, server.url, "plain"):
        pets = on_sagemaker(aws, f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert pets.predict(b"x") == ANSWER
        assert len(server.requests) == 3
        error = failure(pets.predict, b"x")
    assert (error.code, error.status, str(error)) == ("busy", 503, BUSY["message"])
    assert len(server.requests) > 3 + 2


def test_throttling_is_retried(aws):
    with scripted(aws_error(400, "ThrottlingException", "Rate exceeded"), reply()) as server:
        assert on_sagemaker(aws, server.url).predict(b"x") == ANSWER


@pytest.mark.parametrize(
    ("status", "code", "message", "advice"),
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
def test_an_error_of_aws_has_advice_and_is_not_retried(aws, status, code, message, advice):
    with scripted(aws_error(status, code, message)) as server:
        error = failure(on_sagemaker(aws, server.url).predict, b"x")
    assert (error.code, error.status, len(server.requests)) == ("aws", status, 1)
    assert str(error).startswith(message.rstrip("."))
    assert advice in str(error)


def test_missing_credentials_are_one_sentence_with_advice(aws):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    error = failure(on_sagemaker(aws, "http://127.0.0.1:1").predict, b"x")
    assert error.code == "aws"
    assert str(error).startswith("Unable to locate credentials; check `aws sts get-caller-identity`")


@pytest.mark.parametrize(
    ("name", "value", "advice"), [("REGION", "", "set AWS_DEFAULT_REGION"), ("PROFILE", "x", "list")]
)
def test_an_incomplete_aws_configuration_has_advice(aws, name, value, advice):
    aws.delenv("AWS_DEFAULT_REGION")
    aws.setenv(f"AWS_{name}", value)
    error = failure(ImagePredictor, "pets")
    assert error.code == "aws"
    assert advice in str(error)


def test_unreachable_or_slow_aws_is_an_error(aws):
    error = failure(on_sagemaker(aws, "http://127.0.0.1:1").predict, b"x")
    assert (error.code, error.status) == ("unreachable", None)
    with scripted(reply(wait=0.6)) as server:
        error = failure(on_sagemaker(aws, server.url, timeout=0.2).predict, b"x")
    assert (error.code, error.status) == ("timeout", None)


# predict_many


def by_body(body):
    """Answer later pictures sooner; b"bad" is not a picture."""
    if body == b"bad":
        return reply(400, NOT_A_PICTURE)
    return reply(body={**ANSWER, "class": body.decode()}, wait=0.2 / int(body))


def test_predict_many_keeps_the_order_and_each_error():
    pictures = [b"1", b"2", "no/such/file", b"bad", b"5", b"6"]
    with scripted(answer=by_body) as server:
        answers = list(ImagePredictor(url=server.url).predict_many(pictures, concurrency=6))
    assert [a["class"] if isinstance(a, dict) else a.code for a in answers] == [
        "1", "2", "unreadable", "not_a_picture", "5", "6",
    ]  # fmt: skip


def test_predict_many_reads_a_generator_only_a_little_ahead():
    taken = []
    endless = (taken.append(n) or b"9" for n in range(10**9))
    with scripted(reply()) as server:
        answers = ImagePredictor(url=server.url).predict_many(endless, concurrency=3)
        assert taken == []
        assert [next(answers) for _ in range(5)] == [ANSWER] * 5
        answers.close()
    assert len(taken) <= 5 + 2 * 3


# In an application


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


def test_every_kind_of_picture_argument_gets_the_same_class(endpoint):
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


def test_a_scaled_down_picture_gets_the_answer_of_the_full_size(endpoint):
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


def test_boto3_and_requests_get_the_same_answers_and_errors(endpoint, aws):
    pictures = sorted((endpoint.project / "train/pictures").iterdir())[:3]
    plain, sagemaker = ImagePredictor(url=endpoint.url), on_sagemaker(aws, endpoint.url)
    assert list(plain.predict_many(pictures)) == list(sagemaker.predict_many(pictures))
    errors = [failure(p.predict, b"no picture") for p in (plain, sagemaker)]
    assert {(e.code, e.status, str(e)) for e in errors} == {("not_a_picture", 400, str(errors[0]))}
