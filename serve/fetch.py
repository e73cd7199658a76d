"""Fetch a picture from an address in a request, guarded against server-side request forgery (SSRF).

Every hop is resolved, every IP address of its name must be public, and the connection goes to the very IP
address that was checked: neither a redirect nor a second DNS answer leads to the container's credentials or
network. It uses the standard library, because the common HTTP clients resolve names themselves.
"""

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_BYTES = 10 * 10**6
MAX_ADDRESS = 2048  # characters
MAX_HOST = 253  # characters, DNS's own limit; Python's idna codec takes seconds for 100,000
MAX_REDIRECTS = 3
CONNECT_SECONDS = 5
PORTS = {"http": 80, "https": 443}
SAFE = "/?%:@!$&'()*+,;=~[]"  # characters that are not percent-encoded
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")  # all that IANA has assigned as global unicast
# Inside of it: 6to4 and Teredo, which hold an IPv4 address, and RFC 9637's for documentation.
NOT_PUBLIC_IPV6 = [ipaddress.ip_network(n) for n in ("2002::/16", "2001::/32", "3fff::/20")]
RELAYS = ipaddress.ip_network("192.88.99.0/24")  # of 6to4, withdrawn by RFC 7526
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")  # int() takes a sign, underscores and spaces as well
MAX_LINE = 4096  # bytes of a chunk's first line, which may have extensions


class RefusedError(Exception):
    """An address that must not be fetched."""


class FailedError(Exception):
    """An address that may be fetched, but did not return a picture's bytes."""


def fetch(url: str, deadline: float) -> bytes:
    """Download a public http(s) address before `deadline` (seconds, of time.monotonic).

    Raises RefusedError or FailedError. Any SERVE_URLS but "on" in the environment refuses every address.
    """
    if os.environ.get("SERVE_URLS", "on").strip().lower() != "on":
        raise RefusedError("this endpoint fetches no addresses; send the picture itself")
    try:
        for _ in range(MAX_REDIRECTS + 1):
            body, location = get(url, deadline)
            if location is None:
                return body
            url = urljoin(url, location)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FailedError(f"the address could not be fetched: {reason(error)}") from error
    raise FailedError(f"the address redirects more than {MAX_REDIRECTS} times")


def reason(error: Exception) -> str:
    """Why a fetch failed, without quoting the other server."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, OSError):
        return error.strerror or "the connection failed"
    return "it is malformed" if isinstance(error, ValueError) else "its answer is not HTTP"


def get(url: str, deadline: float) -> tuple[bytes, str | None]:
    """Send one GET: the body, and the address that it redirects to, if it does."""
    parts = split(url)
    host, port = parts.hostname, parts.port or PORTS.get(parts.scheme, 0)
    if not host or parts.scheme not in PORTS or port not in PORTS.values():
        raise RefusedError("an address must be http or https, on port 80 or 443")
    with contextlib.ExitStack() as cleanup:
        sock = cleanup.enter_context(connect(parts.scheme, host, port, deadline))
        # A slow server restarts the socket's time-out with each byte; the watchdog closes the connection.
        watchdog = threading.Timer(max(0, deadline - time.monotonic()), hang_up, [sock])
        watchdog.start()
        cleanup.callback(watchdog.cancel)
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection = http.client.HTTPConnection(host, port)
        connection.sock = sock
        headers = {"User-Agent": "fastai-sagemaker", "Accept": "image/*"}
        connection.request("GET", target(parts), headers=headers)
        response = cleanup.enter_context(connection.getresponse())
        if response.status in (301, 302, 303, 307, 308) and response.headers["Location"]:
            return b"", response.headers["Location"]
        if response.status != 200:
            raise FailedError(f"the address answered with status {response.status}")
        body = read_chunks(response) if response.chunked else response.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise FailedError(f"the address has more than {MAX_BYTES // 10**6} MB")
    if time.monotonic() >= deadline:  # the watchdog may have cut the body short without an error
        raise TimeoutError
    return body, None


def split(url: str) -> SplitResult:
    """An address's parts. Raises FailedError, before anything else looks at it, if it is too long."""
    if len(url) > MAX_ADDRESS:
        raise FailedError(f"the address has more than {MAX_ADDRESS:,} characters")
    parts = urlsplit(url)
    if len(parts.hostname or "") > MAX_HOST:
        raise FailedError(f"the address's host has more than {MAX_HOST} characters")
    return parts


def read_chunks(response: http.client.HTTPResponse) -> bytes:
    """A chunked body, up to the chunk with which it exceeds MAX_BYTES; the trailer is not read.

    http.client itself takes a chunk's size as it comes: at -1 it would read until the connection ends. Raises
    HTTPException if the body is malformed or ends early.
    """
    body = bytearray()
    while len(body) <= MAX_BYTES:
        line = response.fp.readline(MAX_LINE)
        digits = line.partition(b";")[0].strip()
        if not line.endswith(b"\n") or not CHUNK_SIZE.fullmatch(digits):
            raise http.client.HTTPException
        size = int(digits, 16)
        if size == 0:
            break
        wanted = min(size, MAX_BYTES + 1 - len(body))
        chunk = response.fp.read(wanted)
        body += chunk
        if len(chunk) < wanted or (wanted == size and response.fp.readline(MAX_LINE).strip()):
            raise http.client.HTTPException
    return bytes(body)


def target(parts: SplitResult) -> str:
    """An address's path and query, percent-encoded: people write spaces and accents."""
    query = f"?{quote(parts.query, safe=SAFE)}" if parts.query else ""
    return quote(parts.path or "/", safe=SAFE) + query


def connect(scheme: str, host: str, port: int, deadline: float) -> socket.socket:
    """Connect to `host` if every IP address of its name is public; the TLS handshake is the caller's."""
    addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(is_public(address) for address in addresses):
        raise RefusedError("the address is not on the public internet")
    sock = connect_first(addresses, port, deadline)
    if scheme == "http":
        return sock
    context = ssl.create_default_context()
    return context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)


def connect_first(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Connect to the first IP address that accepts. Raises OSError."""
    error: OSError = TimeoutError()
    for address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            sock = socket.create_connection((address, port), min(CONNECT_SECONDS, left))
        except OSError as refused:
            error = refused
        else:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            return sock
    raise error


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet; IPv4 inside IPv6 is checked as IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if ip.version == 6 and (ip not in GLOBAL_IPV6 or any(ip in network for network in NOT_PUBLIC_IPV6)):
        return False
    if ip.version == 4 and ip in RELAYS:
        return False
    return ip.is_global and not ip.is_multicast


def hang_up(sock: socket.socket) -> None:
    """Close a connection under a blocked read; not by TLS's own shutdown, which would block as well."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
