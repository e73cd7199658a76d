"""Fetch a picture from an address that a stranger named, without becoming the stranger's way in.

Every hop is resolved, every address of its name must be public, and the connection goes to the very address
that was checked: neither a redirect nor a second DNS answer leads to the container's credentials or network.
The standard library does it, because the common HTTP clients resolve names themselves.
"""

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_BYTES = 10 * 10**6
MAX_REDIRECTS = 3
CONNECT_SECONDS = 5
PORTS = {"http": 80, "https": 443}
SAFE = "/?%:@!$&'()*+,;=~[]"  # characters that quoting leaves alone
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")  # all that is assigned to the public so far
WRAPPED_IPV4 = [ipaddress.ip_network(n) for n in ("2002::/16", "2001::/32")]  # 6to4 and Teredo, inside of it


class RefusedError(Exception):
    """An address that must not be fetched."""


class FailedError(Exception):
    """An address that may be fetched, but did not yield a picture's bytes."""


def fetch(url: str, deadline: float) -> bytes:
    """The bytes behind a public http(s) address, by `deadline` (in time.monotonic's seconds).

    Raises RefusedError or FailedError. Any SERVE_URLS but "on" in the environment refuses every address.
    """
    if os.environ.get("SERVE_URLS", "on").strip().lower() != "on":
        raise RefusedError("this endpoint takes no addresses; send the picture itself")
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
    """Why a fetch failed, without a word of what the other side said."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, OSError):
        return error.strerror or "the connection failed"
    return "it is malformed" if isinstance(error, ValueError) else "its answer is not HTTP"


def get(url: str, deadline: float) -> tuple[bytes, str | None]:
    """One GET: the body, and the place that it redirects to, if it does."""
    parts = urlsplit(url)
    with contextlib.ExitStack() as cleanup:
        sock = cleanup.enter_context(connect(parts.scheme, parts.hostname, parts.port, deadline))
        # A server that trickles bytes renews the socket's time-out for ever; the watchdog hangs up anyway.
        watchdog = threading.Timer(max(0, deadline - time.monotonic()), hang_up, [sock])
        watchdog.start()
        cleanup.callback(watchdog.cancel)
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection = http.client.HTTPConnection(parts.hostname, parts.port or PORTS[parts.scheme])
        connection.sock = sock
        connection.request(
            "GET", target(parts), headers={"User-Agent": "fastai-sagemaker", "Accept": "image/*"}
        )
        response = cleanup.enter_context(connection.getresponse())
        if response.status in (301, 302, 303, 307, 308) and response.headers["Location"]:
            return b"", response.headers["Location"]
        if response.status != 200:
            raise FailedError(f"the address answered with status {response.status}")
        body = response.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise FailedError(f"behind the address are more than {MAX_BYTES // 10**6} MB")
    if time.monotonic() >= deadline:  # the watchdog may have cut the body short without an error
        raise TimeoutError
    return body, None


def target(parts: SplitResult) -> str:
    """An address's path and query as HTTP carries them; people write spaces and accents."""
    query = f"?{quote(parts.query, safe=SAFE)}" if parts.query else ""
    return quote(parts.path or "/", safe=SAFE) + query


def connect(scheme: str, host: str | None, port: int | None, deadline: float) -> socket.socket:
    """A connection (TLS not yet begun) to `host`, once every address that its name has was found public."""
    port = port or PORTS.get(scheme)
    if not host or scheme not in PORTS or port not in PORTS.values():
        raise RefusedError("an address must be http or https, on port 80 or 443")
    addresses = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(is_public(address) for address in addresses):
        raise RefusedError("the address does not lie on the public internet")
    sock = connect_first(addresses, port, deadline)
    if scheme == "http":
        return sock
    context = ssl.create_default_context()
    return context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)


def connect_first(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """A connection to the first address that answers."""
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
    """Whether an IP address belongs to the open internet; IPv4 inside IPv6 counts as what it is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if ip.version == 6 and (ip not in GLOBAL_IPV6 or any(ip in network for network in WRAPPED_IPV4)):
        return False
    return ip.is_global and not ip.is_multicast


def hang_up(sock: socket.socket) -> None:
    """End a connection under a read that waits on it; not by TLS's own shutdown, which would wait as well."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
