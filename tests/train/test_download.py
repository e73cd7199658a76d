"""--data: folders, fastai's dataset names and URLs; a failed download leaves nothing behind."""

import http.server
import io
import tarfile
import threading

import pytest
from PIL import Image

from download import locate
from pictures import UsageError


def tgz(*names: str, **links: str) -> bytes:
    """An archive of small pictures called `names`, and of symbolic `links`."""
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(picture.getvalue())
            tar.addfile(info, io.BytesIO(picture.getvalue()))
    return archive.getvalue()


@pytest.fixture
def site():
    """A web server on loopback; yields its content by path, and its address as "url".

    A missing path is 404. Content-Length is always that of /whole.tgz, so that a shorter body is cut off.
    """
    content: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = content.get(self.path.partition("?")[0])
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(content["/whole.tgz"]) if body else 0))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    content["url"] = f"http://127.0.0.1:{server.server_port}"
    content["/whole.tgz"] = tgz("breeds/images/Cat_1.png", "breeds/images/Dog_1.png", "breeds/README")
    yield content
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """fastai's cache, empty."""
    from fastai.data.external import fastai_cfg

    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "fastai"))
    fastai_cfg.cache_clear()
    yield tmp_path / "fastai" / "data"
    fastai_cfg.cache_clear()


def test_a_folder_is_used_even_if_a_dataset_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert locate("pets", tmp_path, 0).resolve() == tmp_path / "pets"


def test_an_unknown_name_is_an_error_with_similar_names(tmp_path):
    with pytest.raises(UsageError, match=r"no such fastai dataset \(did you mean .*pets"):
        locate("petz", tmp_path, 0)


def test_an_archive_is_downloaded_once_and_its_images_folder_returned(site, cache, tmp_path):
    url = site["url"] + "/whole.tgz"
    folder = locate(url, tmp_path, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["Cat_1.png", "Dog_1.png"]
    assert cache in folder.parents
    site["/whole.tgz"] = b""
    assert locate(url, tmp_path, 0) == folder


def test_two_urls_with_the_same_file_name_are_two_datasets(site, tmp_path):
    first, second = (locate(f"{site['url']}/whole.tgz?part={i}", tmp_path, 0) for i in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("/missing.tgz", None, "404 Not Found"),
        ("/cut.tgz", lambda whole: whole[:100], "ChunkedEncodingError"),
        ("/page.tgz", lambda whole: bytes(len(whole)), "is not a .tgz archive"),
        ("/damaged.tgz", lambda whole: whole[:80] + bytes(len(whole) - 80), "is not a .tgz archive"),
    ],
)
def test_a_failed_download_is_an_error_and_leaves_nothing(name, body, message, site, cache, tmp_path):
    if body:
        site[name] = body(site["/whole.tgz"])
    with pytest.raises(OSError, match=message):
        locate(site["url"] + name, tmp_path, 0)
    assert not list(cache.iterdir())
    site[name] = site["/whole.tgz"]
    assert locate(site["url"] + name, tmp_path, 0).is_dir()


def test_a_refused_connection_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"could not download .*ConnectionError.*check the address"):
        locate("http://127.0.0.1:9/pets.tgz", tmp_path, 0)  # "discard", on which nothing listens


@pytest.mark.parametrize(
    "hostile",
    [tgz("../../outside.png"), tgz("link/outside.png", link="../.."), tgz("link/outside.png", link="/tmp")],
    ids=["a parent folder", "a link to a parent folder", "a link to an absolute path"],
)
def test_an_archive_cannot_write_outside_its_folder(hostile, site, cache, tmp_path):
    site["/hostile.tgz"] = site["/whole.tgz"] = hostile
    with pytest.raises(OSError, match=r"is not a \.tgz archive that can be unpacked"):
        locate(site["url"] + "/hostile.tgz", tmp_path, 0)
    assert not list(cache.iterdir())
    assert not list(tmp_path.rglob("outside.png"))
