"""Addresses: which ones the guard fetches, which it refuses, and that it limits the time and the bytes.

Host names are resolved by the tests, and connections to one public IP address are redirected to a server on
loopback; the guard itself runs unchanged, down to the IP address that it connects to.
"""

import contextlib
import datetime
import http.server
import io
import json
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from plain_server import in_thread

import fetch
import inference

PUBLIC = "93.184.216.34"  # the IP address of a documentation site; nothing is sent there
REAL_CONNECT = socket.create_connection
REAL_RESOLVE = socket.getaddrinfo


def png(width: int = 40, height: int = 30) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, "PNG")
    return out.getvalue()


PNG = png()
HALF = len(PNG) // 2
MEGABYTE = b"100000\r\n" + bytes(2**20) + b"\r\n"
CHUNKS: dict[str, Iterable[bytes]] = {
    "whole": [b"%X\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG)],
    "split": [b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (PNG[:HALF], PNG[HALF:])]
    + [b"000\r\nTrailer: x\r\n\r\n"],
    "minus": [b"-1\r\n", *[bytes(2**20)] * 50],
    "plus": [b"+1\r\nx\r\n0\r\n\r\n"],
    "underscore": [b"1_0\r\n" + bytes(16) + b"\r\n0\r\n\r\n"],
    "none": [b"\r\n"],
    "word": [b"size\r\n"],
    "long": [b"1;" + b"x" * 5000 + b"\r\nx\r\n0\r\n\r\n"],
    "longer": [b"2\r\nxyz\r\n0\r\n\r\n"],
    "early": [b"ff\r\nx"],
    "no-end": [b"1\r\nx\r\n"],
    "many": [MEGABYTE] * 50,
    "huge": [b"fffffffffffffff\r\n", *[bytes(2**20)] * 50],
}


class Site(http.server.BaseHTTPRequestHandler):
    """A public web site with pictures, redirects and slow answers."""

    protocol_version = "HTTP/1.1"
    hosts: list[str] = []  # noqa: RUF012
    httpd: http.server.ThreadingHTTPServer

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        page = self.path.partition("?")[0]
        if page == "/cat.png":
            self.reply(200, png())
        elif page == "/to/long":
            self.reply(302, b"", Location=f"http://{'a' * 60_000}/")
        elif page.startswith("/to/"):
            self.reply(302, b"", Location=self.path.removeprefix("/to/"))
        elif page.startswith("/again/"):
            left = int(page.removeprefix("/again/"))
            self.reply(307, b"", Location=f"/again/{left - 1}" if left > 1 else "/cat.png")
        elif page == "/huge":
            self.reply(200, bytes(fetch.MAX_BYTES + 1))
        elif page == "/page":
            self.reply(200, b"<html>no picture</html>")
        elif page.startswith("/chunks/"):
            self.chunks(page.removeprefix("/chunks/"))
        elif page in ("/drip", "/drip-headers"):
            self.drip(page)
        elif page == "/late":
            time.sleep(0.6)
            self.reply(200, png())
        elif page == "/caf%C3%A9%20.png":
            self.reply(200, self.path.encode())
        else:
            self.reply(404, b"nothing")

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def chunks(self, name: str) -> None:
        """A chunked answer; the connection is closed after it."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for part in CHUNKS[name]:
                self.wfile.write(part)
        self.close_connection = True

    def drip(self, page: str) -> None:
        """A byte every tenth of a second, for 30 seconds."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"\r\n" * (page == "/drip"))
        try:
            for _ in range(300):
                self.wfile.write(b"x")
                time.sleep(0.1)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch):
    """The site pets.example: the IP addresses of each name (or of each look-up), and the connections made."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=httpd.serve_forever, args=[0.05], daemon=True).start()
    names = {"pets.example": [PUBLIC]}
    connections = []

    def resolve(host: str, port: int, *args: Any, **options: Any) -> list:
        if host not in names:
            return REAL_RESOLVE(host, port, *args, **options)
        found = names[host] if isinstance(names[host], list) else next(names[host])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    def connect(address: tuple, timeout: float | None = None, *args: Any, **options: Any) -> socket.socket:
        connections.append(address)
        if address[0] in ("127.0.0.1", "::1"):  # the tests' own client
            return REAL_CONNECT(address, timeout, *args, **options)
        if address[0] != PUBLIC:
            raise ConnectionRefusedError("refused")
        return REAL_CONNECT(httpd.server_address, timeout)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    Site.hosts.clear()
    Site.httpd = httpd
    yield names, connections
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="module")
def query(project):
    """Post one JSON request to the plain server, in this process so that it uses the test's resolver."""
    with in_thread(inference.model_fn(project / "model")) as url:

        def post(body: dict) -> tuple[int, dict]:
            reply = requests.post(f"{url}/invocations", json=body, timeout=60)
            return reply.status_code, reply.json()

        yield post


def get(url: str, seconds: float = 5) -> bytes:
    return fetch.fetch(url, time.monotonic() + seconds)


def test_a_public_address_is_answered(query, site):
    status, answer = query({"url": "http://pets.example/cat.png?size=large"})
    assert status == 200
    assert answer["predictions"]
    assert Site.hosts == ["pets.example"]


def test_the_connection_goes_to_the_address_that_was_checked(site):
    _, connections = site
    get("http://pets.example/cat.png")
    assert connections == [(PUBLIC, 80)]


def test_several_addresses_are_fetched_at_once_and_a_bad_one_affects_no_other(query, site):
    urls = [
        "http://pets.example/cat.png",
        "http://10.0.0.1/",
        "http://pets.example/none",
        "http://pets.example/page",
    ]
    status, answer = query({"instances": [{"url": url} for url in urls]})
    assert status == 200
    codes = [item.get("error") for item in answer["predictions"]]
    assert codes == [None, "address_refused", "address_failed", "not_a_picture"]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://169.254.170.2/v2/credentials",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://localhost/",
        "http://0.0.0.0/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b:1::a9fe:a9fe]/",
        "http://[::127.0.0.1]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[fec0::1]/",
        "http://[2002:7f00:1::]/",
        "http://[3fff::1]/",
        "http://[3fff:fff:ffff::1]/",
        "http://192.88.99.1/",
        "http://[::ffff:192.88.99.1]/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]/",
        "http://pets.example:8080/cat.png",
        "http://pets.example:22/",
        "ftp://pets.example/cat.png",
        "file:///etc/passwd",
        "gopher://pets.example/",
        "http:///cat.png",
        "cat.png",
    ],
)
def test_an_address_that_is_not_the_public_web_is_refused_before_any_connection(query, site, url):
    _, connections = site
    status, answer = query({"url": url})
    assert (status, answer["error"]) == (422, "address_refused")
    assert all(host == "127.0.0.1" and port > 1024 for host, port in connections)  # the test's own requests


def test_a_name_that_resolves_inside_is_refused(site):
    names, connections = site
    names["evil.example"] = ["127.0.0.1"]
    with pytest.raises(fetch.RefusedError):
        get("http://evil.example/")
    assert connections == []


def test_a_name_with_one_public_and_one_private_address_is_refused(site):
    names, connections = site
    names["evil.example"] = [PUBLIC, "10.0.0.1"]
    with pytest.raises(fetch.RefusedError):
        get("http://evil.example/cat.png")
    assert connections == []


@pytest.mark.parametrize(
    "inside",
    ["http://169.254.169.254/", "http://localhost/", "http://pets.example:6379/", "file:///etc/passwd"],
)
def test_a_public_page_that_redirects_inside_is_refused(site, inside):
    _, connections = site
    with pytest.raises(fetch.RefusedError):
        get(f"http://pets.example/to/{inside}")
    assert connections == [(PUBLIC, 80)]


def test_a_name_that_changes_its_address_between_two_hops_is_checked_again(site):
    names, connections = site
    names["evil.example"] = iter([[PUBLIC], ["127.0.0.1"]])
    with pytest.raises(fetch.RefusedError):
        get("http://evil.example/again/1")
    assert connections == [(PUBLIC, 80)]


def test_three_redirects_are_followed_and_a_fourth_is_not(site):
    assert get("http://pets.example/again/3") == png()
    with pytest.raises(fetch.FailedError, match="more than 3 times"):
        get("http://pets.example/again/4")


def test_the_next_address_is_tried_when_one_does_not_answer(site):
    names, connections = site
    names["pets.example"] = ["93.184.216.99", PUBLIC]
    assert get("http://pets.example/cat.png") == png()
    assert [host for host, _ in connections] == ["93.184.216.99", PUBLIC]


@pytest.mark.parametrize(
    ("path", "message"), [("/none", "status 404"), ("/huge", "more than 10 MB"), ("/cat .png", "status 404")]
)
def test_an_unusable_answer_has_the_reason(site, path, message):
    with pytest.raises(fetch.FailedError, match=message):
        get(f"http://pets.example{path}")


@pytest.mark.parametrize("name", ["whole", "split"])
def test_a_chunked_answer_is_read(site, name):
    assert get(f"http://pets.example/chunks/{name}") == PNG


@pytest.mark.parametrize("name", sorted(set(CHUNKS) - {"whole", "split"}))
def test_a_chunked_answer_never_takes_more_memory_than_its_limit(site, name):
    """At a size of -1 http.client reads all that comes."""
    tracemalloc.start()
    with pytest.raises(fetch.FailedError, match=r"10 MB$" if name in ("many", "huge") else r"not HTTP$"):
        get(f"http://pets.example/chunks/{name}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * fetch.MAX_BYTES


@pytest.mark.parametrize(
    ("url", "message", "hops"),
    [
        (f"http://pets.example/{'x' * 2048}", "2,048 characters", 0),
        (f"http://{'é' * 100_000}/", "2,048 characters", 0),
        (f"http://{'é' * 254}/", "253 characters", 0),
        (f"http://pets.example/to/http://{'a' * 254}/", "253 characters", 1),
        ("http://pets.example/to/long", "2,048 characters", 1),
    ],
    ids=["path", "long host", "host", "redirect", "long redirect"],
)
def test_a_long_address_is_not_looked_at(site, url, message, hops):
    """Python's idna codec takes 2 s of a core for 100,000 letters é."""
    _, connections = site
    with pytest.raises(fetch.FailedError, match=message):
        get(url)
    assert len(connections) == hops


@pytest.mark.parametrize("page", ["/drip", "/drip-headers"])
def test_a_server_that_trickles_is_cut_off_at_the_deadline(site, page):
    start = time.monotonic()
    with pytest.raises(fetch.FailedError):
        get(f"http://pets.example{page}", seconds=1)
    assert time.monotonic() - start < 3


def test_the_time_limit_to_connect_does_not_apply_to_the_answer(site, monkeypatch):
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.2)
    assert get("http://pets.example/late") == png()


def test_spaces_and_accents_are_percent_encoded(site):
    assert get("http://pets.example/café .png?q=café [1]") == b"/caf%C3%A9%20.png?q=caf%C3%A9%20[1]"


@pytest.mark.parametrize("trusted", [False, True])
def test_https_needs_a_certificate_that_is_trusted_and_has_the_name(site, monkeypatch, tmp_path, trusted):
    """A site with a self-signed certificate; then with that certificate among the trusted ones."""
    _, connections = site
    certificate(tmp_path, "pets.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    Site.httpd.socket = server.wrap_socket(Site.httpd.socket, server_side=True)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert get("https://pets.example/cat.png") == png()
        with pytest.raises(fetch.FailedError, match="CERTIFICATE_VERIFY_FAILED"):
            get(f"https://{PUBLIC}/cat.png")
    else:
        with pytest.raises(fetch.FailedError, match="CERTIFICATE_VERIFY_FAILED"):
            get("https://pets.example/cat.png")
    assert set(connections) == {(PUBLIC, 443)}


def certificate(folder: Path, name: str) -> None:
    """A self-signed certificate for `name`, as cert.pem and key.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*pem))


@pytest.mark.parametrize(
    "url", ["http://pets.example/\r\nX-Evil: 1", "http://pets.example/?a\u2028", "http://[", "http://a:b/"]
)
def test_a_malformed_address_never_raises_anything_else(site, url):
    with pytest.raises((fetch.FailedError, fetch.RefusedError)):
        get(url)


@pytest.mark.parametrize("value", ["off", "OFF", "0", "false", "no"])
def test_addresses_can_be_switched_off(query, site, monkeypatch, value):
    monkeypatch.setenv("SERVE_URLS", value)
    status, answer = query({"url": "http://pets.example/cat.png"})
    assert (status, answer["error"]) == (422, "address_refused")
    assert json.dumps(answer).count("fetches no addresses") == 1


def test_slow_names_do_not_delay_other_requests(query, site, monkeypatch):
    """A resolver that does not answer delays the requests that need it, and no others."""
    slow, resolving, resolve = threading.Event(), threading.Semaphore(0), socket.getaddrinfo

    def wait(host: str, *args: Any, **options: Any) -> list:
        if host == "slow.example":
            resolving.release()
            slow.wait(20)
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    waiting = [threading.Thread(target=query, args=[{"url": "http://slow.example/"}]) for _ in range(8)]
    for thread in waiting:
        thread.start()
    for _ in waiting:
        assert resolving.acquire(timeout=20)
    start = time.monotonic()
    assert query({"url": "http://pets.example/cat.png"})[0] == 200
    assert time.monotonic() - start < 5
    slow.set()
    for thread in waiting:
        thread.join()
