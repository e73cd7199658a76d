"""package/upload.py against S3 over HTTP: one key per content, whole or not at all."""

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


def run(folder, *words, archive=b"one", code=0):
    (folder / "model.tar.gz").write_bytes(archive)
    places = ["--archive", str(folder / "model.tar.gz"), "--out", str(folder / "uploaded.json")]
    assert upload.main([*places, "--project", "pets", *words]) == code
    return json.loads((folder / "uploaded.json").read_text()) if code == 0 else None


@pytest.mark.parametrize("archive", [b"one", LARGE], ids=["one part", "three parts"])
def test_what_lies_in_s3_is_the_archive_under_the_name_of_its_content(cloud, tmp_path, archive, capsys):
    facts = run(tmp_path, archive=archive)
    sha256 = hashlib.sha256(archive).hexdigest()
    bucket = f"sagemaker-{aws.REGION}-123456789012"
    assert facts["url"] == f"s3://{bucket}/pets/{sha256[:12]}/model.tar.gz"
    assert (facts["sha256"], facts["region"]) == (sha256, aws.REGION)
    found = cloud.client("s3").get_object(Bucket=bucket, Key=f"pets/{sha256[:12]}/model.tar.gz")
    assert found["Body"].read() == archive
    assert "checksum verified" in capsys.readouterr().out


def test_the_bucket_is_made_private_and_encrypted(cloud, tmp_path):
    bucket, s3 = run(tmp_path)["bucket"], cloud.client("s3")
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_the_same_archive_is_sent_once_and_another_takes_no_ones_place(cloud, tmp_path, capsys):
    run(tmp_path)
    run(tmp_path)
    assert "there already" in capsys.readouterr().out
    assert cloud.calls["s3:PutObject"] == 1
    run(tmp_path, archive=b"two")
    assert len(cloud.objects()) == 2


def test_what_is_broken_in_s3_is_sent_again(cloud, tmp_path):
    facts = run(tmp_path)
    key = facts["url"].removeprefix(f"s3://{facts['bucket']}/")
    cloud.client("s3").put_object(
        Bucket=facts["bucket"], Key=key, Body=b"onf", Metadata={"sha256": facts["sha256"]}
    )
    run(tmp_path)
    assert cloud.client("s3").get_object(Bucket=facts["bucket"], Key=key)["Body"].read() == b"one"


@pytest.mark.parametrize("call", ["UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize("fault", ["throttle", "500", "cut"])
def test_what_goes_wrong_once_is_tried_again(cloud, tmp_path, call, fault):
    cloud.break_(f"s3:{call}", fault, times=1)
    facts = run(tmp_path, archive=LARGE)
    assert cloud.objects() == [facts["url"]]
    assert cloud.calls[f"s3:{call}"] > 1


def test_an_upload_that_fails_leaves_nothing(cloud, tmp_path, capsys):
    cloud.break_("s3:UploadPart", "denied")
    run(tmp_path, archive=LARGE, code=3)
    said = capsys.readouterr().err
    assert re.search("error: .*AccessDenied.*: `invoke role` prints the policy", said)
    assert "Traceback" not in said
    assert cloud.objects() == []
    assert not (tmp_path / "uploaded.json").exists()
    bucket = f"sagemaker-{aws.REGION}-123456789012"
    assert "Uploads" not in cloud.client("s3").list_multipart_uploads(Bucket=bucket)


def test_a_bucket_of_ones_own_is_used_and_never_made(cloud, tmp_path, capsys):
    run(tmp_path, "--bucket", "my-bucket", code=3)
    assert "there is no bucket my-bucket" in capsys.readouterr().err
    place = {"LocationConstraint": aws.REGION}
    cloud.client("s3").create_bucket(Bucket="my-bucket", CreateBucketConfiguration=place)
    assert run(tmp_path, "--bucket", "my-bucket")["url"].startswith("s3://my-bucket/pets/")


def test_a_bucket_in_another_region_is_refused(cloud, tmp_path, capsys):
    place = {"LocationConstraint": "us-west-2"}
    there = cloud.client("s3", "us-west-2")
    there.create_bucket(Bucket="my-bucket", CreateBucketConfiguration=place)
    run(tmp_path, "--bucket", "my-bucket", code=2)
    assert "my-bucket is in us-west-2, out of reach for an endpoint in eu-west-1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--optional"]])
def test_no_credentials_is_a_sentence(tmp_path, monkeypatch, capsys, words):
    aws.nobody(monkeypatch)
    places = ["--archive", "model.tar.gz", "--out", str(tmp_path / "uploaded.json")]
    assert upload.main([*places, "--project", "pets", *words]) == (0 if words else 3)
    said = capsys.readouterr()
    assert "AWS credentials" in (said.out if words else said.err)
    assert not list(tmp_path.iterdir())


def test_a_name_that_sagemaker_does_not_take_is_told_before_anything_is_uploaded(cloud, tmp_path, capsys):
    (tmp_path / "model.tar.gz").write_bytes(b"one")
    places = ["--archive", str(tmp_path / "model.tar.gz"), "--out", str(tmp_path / "uploaded.json")]
    assert upload.main([*places, "--project", "my_pets", "--optional"]) == 2
    assert "not 'my_pets': change `project`" in capsys.readouterr().err
    assert cloud.client("s3").list_buckets()["Buckets"] == []


def test_local_packages_without_a_word_to_aws(tmp_path):
    said = invoke("--dry", "package", "--local").stderr
    assert "upload" not in said
    assert "package/upload.py --optional" in re.sub(" --[a-z]+=\\S*", "", invoke("--dry", "package").stderr)
