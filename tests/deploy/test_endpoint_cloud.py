"""The whole of SageMaker on this machine: the uploaded archive is unpacked, served, tested and queried."""

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
import yaml

import fake_aws as aws
from support import INVOKE, ROOT, run, serving


class Host:
    """An instance: it downloads the endpoint's ModelDataUrl, unpacks it, serves it, and forwards requests."""

    def __init__(self, cloud, folder: Path, stack: ExitStack) -> None:
        self.cloud, self.folder, self.stack = cloud, folder, stack
        self.served: dict[str, str] = {}  # an archive's URL: its server's URL

    def __call__(self, endpoint, headers, body: bytes) -> tuple[int, bytes]:
        """The container's response."""
        sagemaker = self.cloud.client("sagemaker")
        config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint.endpoint_config_name)
        name = config["ProductionVariants"][0]["ModelName"]
        archive = sagemaker.describe_model(ModelName=name)["PrimaryContainer"]["ModelDataUrl"]
        if archive not in self.served:
            self.served[archive] = self.start(archive)
        passed_on = {key: headers[key] for key in ("Content-Type", "Accept") if key in headers}
        answer = requests.post(
            f"{self.served[archive]}/invocations", data=body, headers=passed_on, timeout=60
        )
        return answer.status_code, answer.content

    def start(self, archive: str) -> str:
        """Serve the archive in S3."""
        bucket, _, key = archive.removeprefix("s3://").partition("/")
        packed = self.folder / f"{key.split('/')[1]}.tar.gz"
        self.cloud.client("s3").download_file(bucket, key, str(packed))
        model = self.folder / packed.name.removesuffix(".tar.gz") / "model"
        shutil.unpack_archive(packed, model, filter="data")
        return self.stack.enter_context(serving(model.parent, "plain")).url


@pytest.fixture
def cloud(tmp_path):
    with ExitStack() as stack, aws.running() as cloud:
        cloud.answer = Host(cloud, tmp_path, stack)
        for name in ("fastai-sagemaker-tiny", "fastai-sagemaker-tiny-ttl"):
            trust = '{"Statement": [{"Principal": {"Service": "sagemaker.amazonaws.com"}}]}'
            cloud.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        yield cloud


@pytest.fixture
def tiny(cloud, project, tmp_path):
    """`invoke ...` in a copy of the trained and packaged project."""
    folder = tmp_path / "build" / "tiny"
    shutil.copytree(project, folder)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"project": str(folder)}))
    others = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}

    def tiny(*words, code=0, **environment):
        command = [*INVOKE, "-f", tmp_path / "mine.yaml", *words]
        given = others | (environment or cloud.environment)
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    tiny.folder = folder
    return tiny


def mislabel(folder: Path) -> None:
    """The same network with its labels exchanged: it loads and answers, but wrongly."""
    facts = json.loads((folder / "model/model.json").read_text())
    facts["labels"] = [*facts["labels"][1:], facts["labels"][0]]
    (folder / "model/model.json").write_text(json.dumps(facts))
    run("package/archive.py", "--model", folder / "model", "--out", folder / "model.tar.gz")


def test_a_trained_model_is_served_and_a_mislabelled_one_is_rolled_back(cloud, tiny):
    assert "tiny is live" in tiny("deploy")
    entries = json.loads((tiny.folder / "train/validation.json").read_text())
    sure = max(entries, key=lambda entry: entry["confidence"])
    picture = str(tiny.folder / "train" / sure["file"])
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": aws.REGION}
    said = tiny(
        "predict", picture, "--endpoint", "tiny", AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=cloud.url, **keys
    )
    assert sure["predicted"][0] in said

    left = cloud.resources()
    mislabel(tiny.folder)
    said = tiny("deploy", code=1)
    assert f"training said {sure['predicted'][0]}" in said
    assert "tiny serves its previous version" in said
    assert cloud.resources() == left

    tiny("destroy", "--yes", "--data")
    assert "everything was removed; nothing is billed" in tiny("deploy", code=1)
    assert cloud.resources() == []
