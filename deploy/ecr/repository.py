"""The project's ECR repository: its images, and pushing to it with this machine's Docker."""

import base64
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aws.client import Aws, none_if_missing
from aws.names import PROJECT_TAG, image_name, tag_list
from common import CommandError

KEEP = 5  # images; ECR deletes older ones
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"  # SageMaker rejects OCI manifests
DOCKER_TYPES = {
    "application/vnd.oci.image.config.v1+json": "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}
OTHER_MANIFESTS = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
]


def find_repository(aws: Aws, project: str) -> dict | None:
    """ECR's description of the repository, None without one. Raises CommandError if it is somebody else's."""
    found = none_if_missing(aws("ecr").describe_repositories, repositoryNames=[image_name(project)])
    if found is None:
        return None
    (repository,) = found["repositories"]
    tags = aws("ecr").list_tags_for_resource(resourceArn=repository["repositoryArn"]).get("tags", [])
    if tag_list({PROJECT_TAG: project})[0] not in tags:
        text = f"the ECR repository {repository['repositoryName']} was not created by this tool"
        raise CommandError(2, f"{text}: delete it, or give your project another name")
    return repository


def create_repository(aws: Aws, project: str) -> dict:
    """Create the repository unless it exists, and set its lifecycle policy. Raises CommandError."""
    ecr, name = aws("ecr"), image_name(project)
    repository = find_repository(aws, project)
    if repository is None:
        with contextlib.suppress(ecr.exceptions.RepositoryAlreadyExistsException):  # boto3 retried
            ecr.create_repository(
                repositoryName=name,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
                tags=tag_list({PROJECT_TAG: project}),
            )
            print(f"{name}: ECR repository created", flush=True)
        repository = find_repository(aws, project)
    if repository is None:
        raise CommandError(3, f"ECR has no repository {name} although it was created: run the command again")
    rule = {
        "rulePriority": 1,
        "description": f"keeps the last {KEEP} images",
        "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": KEEP},
        "action": {"type": "expire"},
    }
    ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule]}))
    return repository


def find_image(aws: Aws, project: str, tag: str) -> dict | None:
    """ECR's description of the image with this tag, None if there is none."""
    wanted = {"repositoryName": image_name(project), "imageIds": [{"imageTag": tag}]}
    found = none_if_missing(aws("ecr").describe_images, **wanted)
    return found["imageDetails"][0] if found else None


def check_image_exists(aws: Aws, project: str, uri: str) -> None:
    """Raise CommandError if an image of the project's repository, named by digest, no longer exists."""
    repository, _, digest = uri.partition("@")
    if not digest or not repository.endswith(f"/{image_name(project)}"):
        return
    wanted = {"repositoryName": image_name(project), "imageIds": [{"imageDigest": digest}]}
    if none_if_missing(aws("ecr").describe_images, **wanted) is None:
        text = f"{uri} is no longer in ECR, which keeps the last {KEEP} images"
        raise CommandError(1, f"{text}: `invoke deploy` builds it again")


def remove_repository(aws: Aws, project: str) -> None:
    """Delete the repository with its images."""
    none_if_missing(aws("ecr").delete_repository, repositoryName=image_name(project), force=True)


# --- push


def push(aws: Aws, repository: dict, local: str, tag: str) -> None:
    """Push an image of this machine's Docker to the repository. Raises CommandError."""
    name = f"{repository['repositoryUri']}:{tag}"
    with docker_login(aws, name.partition("/")[0]) as environment:
        try:
            for command in (["tag", local, name], ["push", name]):
                subprocess.run(["docker", *command], env=environment, check=True)
        except subprocess.CalledProcessError:
            text = f"Docker could not push {name}: its output above says why"
            raise CommandError(3, f"{text}; run the command again, or use --builder codebuild") from None
        finally:
            subprocess.run(["docker", "image", "rm", name], capture_output=True, check=False)


@contextlib.contextmanager
def docker_login(aws: Aws, registry: str) -> Iterator[dict[str, str]]:
    """An environment in which Docker may push; the token is stored nowhere else and deleted afterwards."""
    token = aws("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    with tempfile.TemporaryDirectory(prefix="docker-login-") as folder:
        # An entry, even an empty one, keeps Docker from storing the password in the system's keychain.
        (Path(folder) / "config.json").write_text(json.dumps({"auths": {registry: {}}}))
        environment = os.environ | docker_engine_environment() | {"DOCKER_CONFIG": folder}
        command = ["docker", "login", "--username", user, "--password-stdin", registry]
        done = subprocess.run(
            command, env=environment, input=password, capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = " ".join(done.stderr.split()) or "it gave no reason"
            text = f"Docker could not log in to {registry}: {reason}"
            raise CommandError(3, f"{text}; check the network and run the command again")
        yield environment


def docker_engine_environment() -> dict[str, str]:
    """The engine of the user's current Docker context, as environment variables.

    A context is read from DOCKER_CONFIG, which docker_login replaces.
    """
    command = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    host = done.stdout.strip() if done.returncode == 0 else ""
    return {"DOCKER_HOST": host, "DOCKER_CONTEXT": ""} if host else {}


# --- the manifest


def ensure_docker_manifest(aws: Aws, project: str, tag: str, architecture: str) -> dict:
    """The image with this tag, after its OCI manifest was replaced by one in Docker's format if necessary.

    Docker engines with the containerd image store push OCI manifests. The layers are not changed. Safe to
    interrupt and to repeat. Raises CommandError.
    """
    image = existing_image(aws, project, tag)
    if image["imageManifestMediaType"] == DOCKER_MANIFEST:
        return image
    ecr, name = aws("ecr"), image_name(project)
    manifest, parts = single_manifest(ecr, name, {"imageTag": tag}, architecture)
    request = {"repositoryName": name, "imageManifest": as_docker_manifest(manifest)}
    request["imageManifestMediaType"] = DOCKER_MANIFEST
    with contextlib.suppress(ecr.exceptions.ImageAlreadyExistsException):
        ecr.put_image(**request)  # at first without the tag: layers without a manifest would be deleted
    for ids in ([{"imageTag": tag}], parts):
        if ids:
            ecr.batch_delete_image(repositoryName=name, imageIds=ids)
    with contextlib.suppress(ecr.exceptions.ImageAlreadyExistsException):
        ecr.put_image(**request, imageTag=tag)
    print(f"{name}:{tag}: manifest changed from OCI's format to Docker's, which SageMaker takes", flush=True)
    return existing_image(aws, project, tag)


def existing_image(aws: Aws, project: str, tag: str) -> dict:
    """ECR's description of an image that was just pushed. Raises CommandError if ECR does not have it."""
    image = find_image(aws, project, tag)
    if image is None:
        raise CommandError(3, f"ECR has no image {tag} although it was pushed: run the command again")
    return image


def single_manifest(ecr: Any, name: str, image_id: dict, architecture: str) -> tuple[dict, list[dict]]:
    """The manifest for one architecture; the ids of all images of the list that it came from, if any."""
    media_types = {"acceptedMediaTypes": [DOCKER_MANIFEST, *OTHER_MANIFESTS]}
    response = ecr.batch_get_image(repositoryName=name, imageIds=[image_id], **media_types)
    if not response["images"]:
        raise CommandError(3, f"ECR does not return the manifest of {name}: run the command again")
    manifest = json.loads(response["images"][0]["imageManifest"])
    if "manifests" not in manifest:
        return manifest, []
    digests = {part.get("platform", {}).get("architecture"): part["digest"] for part in manifest["manifests"]}
    if architecture not in digests:
        text = f"the image that was pushed to {name} has no {architecture} variant"
        raise CommandError(3, f"{text}: delete it and run the command again")
    chosen, _ = single_manifest(ecr, name, {"imageDigest": digests[architecture]}, architecture)
    return chosen, [{"imageDigest": part["digest"]} for part in manifest["manifests"]]


def as_docker_manifest(manifest: dict) -> str:
    """An OCI manifest in Docker's format. Raises CommandError for a layer that Docker's format lacks."""
    parts = [manifest["config"], *manifest["layers"]]
    media_types = DOCKER_TYPES | {name: name for name in DOCKER_TYPES.values()}
    for part in parts:
        if part["mediaType"] not in media_types:
            text = f"SageMaker takes no {part['mediaType']}"
            raise CommandError(3, f"{text}: `invoke image --builder codebuild`")
    config, *layers = (
        {"mediaType": media_types[part["mediaType"]], "size": part["size"], "digest": part["digest"]}
        for part in parts
    )
    docker = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers}
    return json.dumps(docker, indent=3)
