"""The image in ECR: a repository of the project's own, what is in it, and pushing to it from here."""

import base64
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aws.client import Aws, none_if_missing
from aws.names import PROJECT_TAG, image_name, tag_list
from common import CommandError

KEEP = 5  # images; older ones are deleted by ECR
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"  # SageMaker refuses OCI's manifests
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
    """The repository as ECR describes it, None if there is none. Raises Stop if it is somebody else's."""
    found = none_if_missing(aws("ecr").describe_repositories, repositoryNames=[image_name(project)])
    if found is None:
        return None
    (repository,) = found["repositories"]
    tags = aws("ecr").list_tags_for_resource(resourceArn=repository["repositoryArn"]).get("tags", [])
    if tag_list({PROJECT_TAG: project})[0] not in tags:
        name = repository["repositoryName"]
        raise CommandError(
            2, f"the ECR repository {name} was not made by this tool: delete it, or rename your project"
        )
    return repository


def create_repository(aws: Aws, project: str) -> dict:
    """Make the repository, unless it is there, and its life-cycle rule. Raises Stop."""
    ecr, name = aws("ecr"), image_name(project)
    repository = find_repository(aws, project)
    if repository is None:
        with contextlib.suppress(ecr.exceptions.RepositoryAlreadyExistsException):  # a repeated request
            ecr.create_repository(
                repositoryName=name,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
                tags=tag_list({PROJECT_TAG: project}),
            )
            print(f"{name}: ECR repository made", flush=True)
        repository = find_repository(aws, project)
    rule = {
        "rulePriority": 1,
        "description": f"keeps the last {KEEP} images",
        "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": KEEP},
        "action": {"type": "expire"},
    }
    ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule]}))
    return repository


def find_image(aws: Aws, project: str, tag: str) -> dict | None:
    """The image of this tag as ECR describes it, None if there is none."""
    wanted = {"repositoryName": image_name(project), "imageIds": [{"imageTag": tag}]}
    found = none_if_missing(aws("ecr").describe_images, **wanted)
    return found["imageDetails"][0] if found else None


def check_image_exists(aws: Aws, project: str, uri: str) -> None:
    """Raises Stop when an image of this repository, named by its digest, is no longer there."""
    repository, _, digest = uri.partition("@")
    if not digest or not repository.endswith(f"/{image_name(project)}"):
        return
    wanted = {"repositoryName": image_name(project), "imageIds": [{"imageDigest": digest}]}
    if none_if_missing(aws("ecr").describe_images, **wanted) is None:
        text = f"{uri} is no longer in ECR, which keeps the last {KEEP} images"
        raise CommandError(1, f"{text}: `invoke deploy` makes it anew")


def remove_repository(aws: Aws, project: str) -> None:
    """Delete the repository with its images."""
    none_if_missing(aws("ecr").delete_repository, repositoryName=image_name(project), force=True)


# --- pushing


def push(aws: Aws, repository: dict, local: str, tag: str) -> None:
    """Send an image of this machine's Docker to the repository. Raises Stop."""
    name = f"{repository['repositoryUri']}:{tag}"
    with docker_login(aws, name.partition("/")[0]) as environment:
        try:
            for command in (["tag", local, name], ["push", name]):
                subprocess.run(["docker", *command], env=environment, check=True)
        except subprocess.CalledProcessError:
            text = f"Docker could not push {name}: what it printed says why"
            raise CommandError(3, f"{text}; then repeat the command, or use --builder codebuild") from None
        finally:
            subprocess.run(["docker", "image", "rm", name], capture_output=True, check=False)


@contextlib.contextmanager
def docker_login(aws: Aws, registry: str) -> Iterator[dict[str, str]]:
    """An environment in which Docker may push, until the block ends: the token is kept nowhere else."""
    token = aws("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    with tempfile.TemporaryDirectory(prefix="docker-login-") as folder:
        # An entry, even an empty one, keeps Docker from storing the password in the system's key chain.
        (Path(folder) / "config.json").write_text(json.dumps({"auths": {registry: {}}}))
        environment = os.environ | docker_engine_environment() | {"DOCKER_CONFIG": folder}
        command = ["docker", "login", "--username", user, "--password-stdin", registry]
        done = subprocess.run(
            command, env=environment, input=password, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = " ".join(done.stderr.split()) or "it gave no reason"
            raise CommandError(
                3, f"Docker could not log in to {registry}: {said}; check the network and repeat"
            )
        yield environment


def docker_engine_environment() -> dict[str, str]:
    """The engine that the user's own configuration chooses, in the words of the environment."""
    command = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    host = done.stdout.strip() if done.returncode == 0 else ""
    return {"DOCKER_HOST": host, "DOCKER_CONTEXT": ""} if host else {}


# --- the form that SageMaker takes


def ensure_docker_manifest(aws: Aws, project: str, tag: str, architecture: str) -> dict:
    """The image of this tag, by a manifest of Docker's kind: engines with containerd push OCI's.

    The layers stay as they are. May be broken off and repeated. Raises Stop.
    """
    image = find_image(aws, project, tag)
    if image is None:
        raise CommandError(3, f"ECR has no image {tag} though it was pushed: repeat the command")
    if image["imageManifestMediaType"] == DOCKER_MANIFEST:
        return image
    ecr, name = aws("ecr"), image_name(project)
    manifest, parts = single_manifest(ecr, name, {"imageTag": tag}, architecture)
    request = {"repositoryName": name, "imageManifest": as_docker_manifest(manifest)}
    request["imageManifestMediaType"] = DOCKER_MANIFEST
    with contextlib.suppress(ecr.exceptions.ImageAlreadyExistsException):
        ecr.put_image(**request)  # without a tag at first: the layers must never be nobody's
    for ids in ([{"imageTag": tag}], parts):
        if ids:
            ecr.batch_delete_image(repositoryName=name, imageIds=ids)
    with contextlib.suppress(ecr.exceptions.ImageAlreadyExistsException):
        ecr.put_image(**request, imageTag=tag)
    print(f"{name}:{tag}: manifest changed from OCI's kind to Docker's, which SageMaker takes", flush=True)
    return find_image(aws, project, tag)


def single_manifest(ecr: object, name: str, image_id: dict, architecture: str) -> tuple[dict, list[dict]]:
    """The manifest for one architecture, and the ids of the parts of the list that it came from, if any."""
    kinds = {"acceptedMediaTypes": [DOCKER_MANIFEST, *OTHER_MANIFESTS]}
    answer = ecr.batch_get_image(repositoryName=name, imageIds=[image_id], **kinds)
    if not answer["images"]:
        raise CommandError(3, f"ECR does not give the manifest of {name}: repeat the command")
    manifest = json.loads(answer["images"][0]["imageManifest"])
    if "manifests" not in manifest:
        return manifest, []
    parts = {one.get("platform", {}).get("architecture"): one["digest"] for one in manifest["manifests"]}
    if architecture not in parts:
        raise CommandError(
            3, f"what was pushed to {name} has no image for {architecture}: delete it and repeat"
        )
    chosen, _ = single_manifest(ecr, name, {"imageDigest": parts[architecture]}, architecture)
    return chosen, [{"imageDigest": one["digest"]} for one in manifest["manifests"]]


def as_docker_manifest(manifest: dict) -> str:
    """An OCI manifest in Docker's words. Raises Stop for layers that Docker has no word for."""
    parts = [manifest["config"], *manifest["layers"]]
    words = DOCKER_TYPES | {word: word for word in DOCKER_TYPES.values()}
    for part in parts:
        if part["mediaType"] not in words:
            raise CommandError(
                3, f"SageMaker takes no {part['mediaType']}: `invoke image --builder codebuild`"
            )
    config, *layers = (
        {"mediaType": words[one["mediaType"]], "size": one["size"], "digest": one["digest"]} for one in parts
    )
    return json.dumps(
        {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers}, indent=3
    )
