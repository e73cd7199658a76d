"""A registry on this machine, to which a real Docker pushes: blobs in memory, manifests in moto's ECR.

The distribution protocol, as far as `docker push` uses it; requests without the token are rejected.
"""

import base64
import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response


class Hub:
    """The registry; `address` is how a repository's URI starts."""

    def __init__(self, cloud, password: str) -> None:
        self.cloud, self.address, self.repository = cloud, "", ""
        self.expected = "Basic " + base64.b64encode(f"AWS:{password}".encode()).decode()
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """WSGI: the response to one request."""
        return self.respond(Request(environ))(environ, start_response)

    def respond(self, request: Request) -> Response:
        """The response to one request."""
        if request.headers.get("Authorization") != self.expected:
            return Response("", 401, {"WWW-Authenticate": 'Basic realm="hub"'})
        if request.path == "/v2/":
            return Response("{}", content_type="application/json")
        self.repository, _, rest = request.path.removeprefix("/v2/").partition("/")
        kind, _, name = rest.partition("/")
        return self.manifest(request, name) if kind == "manifests" else self.blob(request, name)

    def manifest(self, request: Request, tag: str) -> Response:
        """HEAD, GET or PUT of a manifest."""
        if request.method != "PUT":
            return Response("", 404)
        body = request.get_data()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        wanted = {"imageTag": tag} if not tag.startswith("sha256:") else {}
        self.cloud.client("ecr").put_image(
            repositoryName=self.repository,
            imageManifest=body.decode(),
            imageManifestMediaType=request.content_type,
            imageDigest=digest,
            **wanted,
        )
        return Response("", 201, {"Docker-Content-Digest": digest})

    def blob(self, request: Request, name: str) -> Response:
        """HEAD or GET of a layer, or its upload: started, in pieces, and finished."""
        if request.method in ("HEAD", "GET"):
            found = self.blobs.get(name)
            headers = {"Docker-Content-Digest": name, "Content-Length": str(len(found or b""))}
            return Response("", 200 if found is not None else 404, headers)
        if request.method == "POST":
            number = str(len(self.uploads))
            self.uploads[number] = b""
            return Response("", 202, {"Location": f"{request.path.rstrip('/')}/{number}"})
        number = name.rpartition("/")[2]
        self.uploads[number] += request.get_data()
        if request.method == "PATCH":
            size = len(self.uploads[number])
            return Response("", 202, {"Location": request.path, "Range": f"0-{size - 1}"})
        digest = request.args["digest"]
        content = self.uploads.pop(number)
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            return Response("", 400)
        self.blobs[digest] = content
        return Response("", 201, {"Docker-Content-Digest": digest, "Location": request.path})


@contextmanager
def running(cloud, password: str) -> Iterator[Hub]:
    """A registry, until the block ends. Docker accepts one without TLS at 127.0.0.1."""
    hub = Hub(cloud, password)
    server = make_server("127.0.0.1", 0, hub, threaded=True, request_handler=Chunked)
    hub.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Chunked(WSGIRequestHandler):
    """Docker sends layers in chunks, over persistent connections."""

    protocol_version = "HTTP/1.1"

    def log(self, *args: object) -> None:
        pass
