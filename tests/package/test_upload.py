"""package/upload.py against S3 over HTTP: one key per content, uploaded completely or not at all."""

import hashlib
import json
import os
import re

import pytest

import fake_aws as aws
import upload
from support import invoke

LARGE = os.urandom(17_000_000)  # three parts


@pytest.fixture
def cloud(monkeypatch):
    with aws.account(monkeypatch) as cloud:
        yield cloud


def run(folder, *flags, archive=b"one", code=0):
    (folder / "model.tar.gz").write_bytes(archive)
    files = ["--archive", str(folder / "model.tar.gz"), "--out", str(folder / "uploaded.json")]
    assert upload.main([*files, "--project", "pets", *flags]) == code
    return json.loads((folder / "uploaded.json").read_text()) if code == 0 else None


@pytest.mark.parametrize("archive", [b"one", LARGE], ids=["one part", "three parts"])
def test_the_object_in_s3_is_the_archive_under_a_key_with_its_hash(cloud, tmp_path, archive, capsys):
    facts = run(tmp_path, archive=archive)
    sha256 = hashlib.sha256(archive).hexdigest()
    bucket = f"sagemaker-{aws.REGION}-123456789012"
    assert facts["url"] == f"s3://{bucket}/pets/{sha256[:12]}/model.tar.gz"
    assert (facts["sha256"], facts["region"]) == (sha256, aws.REGION)
    stored = cloud.client("s3").get_object(Bucket=bucket, Key=f"pets/{sha256[:12]}/model.tar.gz")
    assert stored["Body"].read() == archive
    assert "checksum verified" in capsys.readouterr().out


def test_the_bucket_is_created_private_and_encrypted(cloud, tmp_path):
    bucket, s3 = run(tmp_path)["bucket"], cloud.client("s3")
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_the_same_archive_is_uploaded_once_and_another_does_not_overwrite_it(cloud, tmp_path, capsys):
    run(tmp_path)
    run(tmp_path)
    assert "already uploaded" in capsys.readouterr().out
    assert cloud.calls["s3:PutObject"] == 1
    run(tmp_path, archive=b"two")
    assert len(cloud.objects()) == 2


def test_an_object_with_other_content_is_uploaded_again(cloud, tmp_path):
    facts = run(tmp_path)
    key = facts["url"].removeprefix(f"s3://{facts['bucket']}/")
    cloud.client("s3").put_object(
        Bucket=facts["bucket"], Key=key, Body=b"onf", Metadata={"sha256": facts["sha256"]}
    )
    run(tmp_path)
    assert cloud.client("s3").get_object(Bucket=facts["bucket"], Key=key)["Body"].read() == b"one"


@pytest.mark.parametrize("call", ["UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize("fault", ["throttle", "500", "cut"])
def test_a_call_that_fails_once_is_retried(cloud, tmp_path, call, fault):
    cloud.break_(f"s3:{call}", fault, times=1)
    facts = run(tmp_path, archive=LARGE)
    assert cloud.objects() == [facts["url"]]
    assert cloud.calls[f"s3:{call}"] > 1


def test_a_failed_upload_leaves_nothing(cloud, tmp_path, capsys):
    cloud.break_("s3:UploadPart", "denied")
    run(tmp_path, archive=LARGE, code=3)
    message = capsys.readouterr().err
    assert re.search("error: .*AccessDenied.*: `invoke role` prints the policy", message)
    assert "Traceback" not in message
    assert cloud.objects() == []
    assert not (tmp_path / "uploaded.json").exists()
    bucket = f"sagemaker-{aws.REGION}-123456789012"
    assert "Uploads" not in cloud.client("s3").list_multipart_uploads(Bucket=bucket)


def test_a_given_bucket_is_used_and_never_created(cloud, tmp_path, capsys):
    run(tmp_path, "--bucket", "my-bucket", code=3)
    assert "there is no bucket my-bucket" in capsys.readouterr().err
    where = {"LocationConstraint": aws.REGION}
    cloud.client("s3").create_bucket(Bucket="my-bucket", CreateBucketConfiguration=where)
    assert run(tmp_path, "--bucket", "my-bucket")["url"].startswith("s3://my-bucket/pets/")


def test_a_bucket_in_another_region_is_rejected(cloud, tmp_path, capsys):
    where = {"LocationConstraint": "us-west-2"}
    elsewhere = cloud.client("s3", "us-west-2")
    elsewhere.create_bucket(Bucket="my-bucket", CreateBucketConfiguration=where)
    run(tmp_path, "--bucket", "my-bucket", code=2)
    assert "my-bucket is in us-west-2, but the endpoint would be in eu-west-1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "stream", "message"),
    [
        ([], 3, "err", "error: no AWS credentials were found: run `aws configure`"),
        (
            ["--optional"],
            0,
            "out",
            "model.tar.gz: not uploaded (no AWS credentials); `invoke deploy` uploads it\n",
        ),
    ],
)
def test_missing_credentials_are_one_sentence(tmp_path, monkeypatch, capsys, flags, code, stream, message):
    aws.without_credentials(monkeypatch)
    files = ["--archive", "model.tar.gz", "--out", str(tmp_path / "uploaded.json")]
    assert upload.main([*files, "--project", "pets", *flags]) == code
    assert getattr(capsys.readouterr(), stream).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_name_that_sagemaker_rejects_is_an_error_before_anything_is_uploaded(cloud, tmp_path, capsys):
    (tmp_path / "model.tar.gz").write_bytes(b"one")
    files = ["--archive", str(tmp_path / "model.tar.gz"), "--out", str(tmp_path / "uploaded.json")]
    assert upload.main([*files, "--project", "my_pets", "--optional"]) == 2
    assert "not 'my_pets': change `project`" in capsys.readouterr().err
    assert cloud.client("s3").list_buckets()["Buckets"] == []


def test_package_local_does_not_upload():
    output = invoke("--dry", "package", "--local").stderr
    assert "upload" not in output
    assert "package/upload.py --optional" in re.sub(" --[a-z]+=\\S*", "", invoke("--dry", "package").stderr)
