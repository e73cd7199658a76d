"""`docker` and `aws` as a test puts them on PATH: each call is written down, a push ends in moto's ECR.

STANDIN is the folder of what they write down and the address of the cloud; FAIL a word that makes the call
with it fail; PASSWORD what `aws` says; MANIFEST the kind of manifest that is pushed: docker, oci or index.
"""

import hashlib
import json
import os
import sys
import urllib.request
from pathlib import Path

FOLDER, CLOUD = os.environ.get("STANDIN", " ").split(" ")
OCI, DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
KINDS = {
    "docker": (
        DOCKER + "distribution.manifest.v2+json",
        DOCKER + "container.image.v1+json",
        DOCKER + "image.rootfs.diff.tar.gzip",
    ),
    "oci": (OCI + "manifest.v1+json", OCI + "config.v1+json", OCI + "layer.v1.tar+gzip"),
}


def main(tool: str, words: list[str]) -> int:
    """Do what is asked."""
    given = "" if sys.stdin.isatty() or words[:1] != ["login"] else sys.stdin.read()
    configured = Path(os.environ.get("DOCKER_CONFIG", "/nowhere"))
    call = {"tool": tool, "words": words, "stdin": given, "config": str(configured)}
    call["attestations"] = os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS")
    with open(Path(FOLDER) / "calls.jsonl", "a") as file:
        file.write(json.dumps(call) + "\n")
    if os.environ.get("FAIL") in words:
        print(f"{tool}: something went wrong with {words[0]}", file=sys.stderr)
        return 17
    if tool == "aws":
        print(os.environ.get("PASSWORD", "a-password"))
    elif words[:2] == ["image", "inspect"] or words[:2] == ["network", "inspect"]:
        return 1
    elif words[0] == "context":
        print("unix:///chosen.sock")
    elif words[0] == "build":
        print("Step 1/1 : FROM base")
    elif words[0] == "push":
        push(words[-1], os.environ.get("MANIFEST", "docker"))
    return 0


def push(name: str, kind: str) -> None:
    """What a registry does at the end of a push."""
    repository, _, tag = name.rpartition("/")[2].partition(":")
    if kind == "index":
        single = manifest("oci", tag)
        digest = put(repository, None, single)
        parts = [{"mediaType": single["mediaType"], "digest": digest, "size": 9}]
        parts[0]["platform"] = {"architecture": tag.rpartition("-")[2], "os": "linux"}
        attested = {"architecture": "unknown", "os": "unknown"}
        other = put(repository, None, manifest("oci", "attestation"))
        parts.append({"mediaType": single["mediaType"], "digest": other, "size": 9, "platform": attested})
        put(repository, tag, {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": parts})
    else:
        put(repository, tag, manifest(kind, tag))
    print(f"{tag}: digest: sha256:... size: 1234")


def manifest(kind: str, tag: str) -> dict:
    """An image of one layer."""
    whole, config, layer = KINDS[kind]
    digest = "sha256:" + hashlib.sha256(tag.encode()).hexdigest()
    return {
        "schemaVersion": 2,
        "mediaType": whole,
        "config": {"mediaType": config, "size": 109_000_000, "digest": digest},
        "layers": [{"mediaType": layer, "size": 108_000_000, "digest": digest[:-1] + "0"}],
    }


def put(repository: str, tag: str | None, document: dict) -> str:
    """PutImage; the digest."""
    text = json.dumps(document)
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    request = {"repositoryName": repository, "imageManifest": text, "imageDigest": digest}
    request |= {"imageTag": tag} if tag else {}
    headers = {
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.PutImage",
        "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/ecr/aws4_request, Signature=0",
    }
    urllib.request.urlopen(urllib.request.Request(CLOUD, json.dumps(request).encode(), headers)).read()
    return digest


def install(folder: Path) -> Path:
    """A folder for PATH that has both."""
    folder.mkdir()
    for tool in ("docker", "aws"):
        text = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        (folder / tool).write_text(
            f"{text}import fake_docker_cli\nsys.exit(fake_docker_cli.main({tool!r}, sys.argv[1:]))\n"
        )
        (folder / tool).chmod(0o755)
    return folder
