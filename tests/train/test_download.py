"""--data: folders, fastai's names and addresses; a download is whole or it is not there."""

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
    """A web server on loopback: what it answers by path (None: 404, fewer bytes than promised: cut)."""
    answers: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers.get(self.path.partition("?")[0])
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(answers["/whole.tgz"]) if body else 0))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    answers["url"] = f"http://127.0.0.1:{server.server_port}"
    answers["/whole.tgz"] = tgz("breeds/images/Cat_1.png", "breeds/images/Dog_1.png", "breeds/README")
    yield answers
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


def test_a_folder_is_taken_as_it_is_even_if_a_dataset_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert locate("pets", tmp_path, 0).resolve() == tmp_path / "pets"


def test_an_unknown_name_is_a_sentence_with_near_ones(tmp_path):
    with pytest.raises(UsageError, match=r"no such fastai dataset \(did you mean .*pets"):
        locate("petz", tmp_path, 0)


def test_an_archive_is_downloaded_once_and_its_images_folder_found(site, cache, tmp_path):
    url = site["url"] + "/whole.tgz"
    folder = locate(url, tmp_path, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["Cat_1.png", "Dog_1.png"]
    assert cache in folder.parents
    site["/whole.tgz"] = b""
    assert locate(url, tmp_path, 0) == folder


def test_two_addresses_that_end_alike_are_two_datasets(site, tmp_path):
    one, other = (locate(f"{site['url']}/whole.tgz?part={i}", tmp_path, 0) for i in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    ("name", "body", "sentence"),
    [
        ("/missing.tgz", None, "404 Not Found"),
        ("/cut.tgz", lambda whole: whole[:100], "ChunkedEncodingError"),
        ("/page.tgz", lambda whole: bytes(len(whole)), "is not a .tgz archive"),
        ("/damaged.tgz", lambda whole: whole[:80] + bytes(len(whole) - 80), "is not a .tgz archive"),
    ],
)
def test_a_failed_download_is_a_sentence_and_leaves_nothing(name, body, sentence, site, cache, tmp_path):
    if body:
        site[name] = body(site["/whole.tgz"])
    with pytest.raises(OSError, match=sentence):
        locate(site["url"] + name, tmp_path, 0)
    assert not list(cache.iterdir())
    site[name] = site["/whole.tgz"]
    assert locate(site["url"] + name, tmp_path, 0).is_dir()


def test_a_server_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(OSError, match=r"could not download .*ConnectionError.*check the address"):
        locate("http://127.0.0.1:9/pets.tgz", tmp_path, 0)


@pytest.mark.parametrize(
    "hostile",
    [tgz("../../outside.png"), tgz("link/outside.png", link="../.."), tgz("link/outside.png", link="/tmp")],
    ids=["a parent folder", "a link to a parent folder", "a link to anywhere"],
)
def test_an_archive_cannot_write_outside_its_folder(hostile, site, cache, tmp_path):
    site["/hostile.tgz"] = site["/whole.tgz"] = hostile
    with pytest.raises(OSError, match=r"is not a \.tgz archive that can be unpacked"):
        locate(site["url"] + "/hostile.tgz", tmp_path, 0)
    assert not list(cache.iterdir())
    assert not list(tmp_path.rglob("outside.png"))
