"""deploy/role.py: least-privilege policies, and roles that are created once."""

import json
import re

import boto3
import pytest

import fake_aws as aws
import role
from aws import roles
from aws.client import Aws, connect
from common import CommandError
from support import ROOT

EXECUTION, TTL = "fastai-sagemaker-pets", "fastai-sagemaker-pets-ttl"


@pytest.fixture
def cloud(monkeypatch):
    with aws.account(monkeypatch) as cloud:
        yield cloud


def run(*words, code=0):
    assert role.main(["--project", "pets", *words]) == code


def test_the_policies_are_printed_filled_in_and_nothing_is_created(cloud, capsys):
    run()
    printed = capsys.readouterr().out
    documents = json.loads(printed)
    assert set(documents) == {"execution_role", "ttl_role", "build_role", "deployer", "image_builder"}
    assert re.findall(r"\$\{?\w+", printed) == ["${aws"]  # aws:username, which is IAM's own to fill in
    assert f"sagemaker-{aws.REGION}-123456789012/pets/*" in printed
    assert cloud.client("iam").list_roles()["Roles"] == []


def test_without_credentials_the_policies_have_placeholders(monkeypatch, capsys):
    aws.without_credentials(monkeypatch)
    run()
    said = capsys.readouterr()
    assert "arn:aws:s3:::sagemaker-REGION-ACCOUNT/pets/*" in said.out
    assert "replace ACCOUNT and REGION with your own" in said.err


@pytest.mark.parametrize("file", sorted((ROOT / "deploy/policies").iterdir()), ids=lambda file: file.name)
def test_no_policy_allows_everything(file):
    for statement in json.loads(file.read_text())["Statement"]:
        actions = statement["Action"]
        assert not [a for a in ([actions] if type(actions) is str else actions) if "*" in a]
        if statement.get("Resource") == "*":
            # AWS knows no narrower resource.
            known = ("LogInToEcr", "Metrics", "Vpc", "List", "Scaling", "WatchTheAlarmsOfAnUpdate")
            assert statement["Sid"] in known


@pytest.mark.parametrize("region", ["eu-west-1", "ap-northeast-1", "us-gov-west-1", "cn-northwest-1"])
def test_every_policy_is_within_the_size_of_a_managed_policy(region):
    partition = boto3.Session().get_partition_for_region(region)
    account = Aws(None, region, partition, "123456789012", "")
    documents = role.policies(account, "p" * 40, with_flags("--kms-key", "k" * 36))
    assert max(len(json.dumps(one["policy"], separators=(",", ":"))) for one in documents.values()) <= 6144


def statements(*words: str, who: str = "execution_role") -> list[dict]:
    """The statements of a policy, for these flags."""
    documents = role.policies(connect(), "pets", with_flags(*words))
    return documents[who]["policy"]["Statement"]


def with_flags(*words: str):
    return role.arguments(["--project", "pets", *words])


def test_a_batch_may_read_and_write_elsewhere(cloud):
    found = statements("--read", "s3://photos/2026/,s3://more", "--write", "s3://answers/x")
    wanted = {
        "s3:GetObject": ["arn:aws:s3:::photos/2026/*", "arn:aws:s3:::more/*"],
        "s3:PutObject": ["arn:aws:s3:::answers/x/*"],
        "s3:ListBucket": ["arn:aws:s3:::more", "arn:aws:s3:::photos"],
    }
    assert {one["Action"]: one["Resource"] for one in found[-3:]} == wanted
    run("--create", "--write", "s3://answers")
    policy = cloud.client("iam").get_role_policy(RoleName=EXECUTION, PolicyName="fastai-sagemaker")
    assert "arn:aws:s3:::answers/*" in json.dumps(policy["PolicyDocument"])


def test_a_kms_key_may_be_used_by_role_and_deployer(cloud):
    for who in ("execution_role", "deployer"):
        assert "kms:" not in json.dumps(statements(who=who))
        found = statements("--kms-key", "abc", who=who)
        assert found[-1]["Resource"] == f"arn:aws:kms:{aws.REGION}:123456789012:key/abc"


def test_a_role_of_your_own_is_the_one_that_may_be_passed(cloud):
    (found,) = (
        one for one in statements("--role", "mine", who="deployer") if one["Sid"].endswith("SageMaker")
    )
    assert found["Resource"] == "arn:aws:iam::123456789012:role/mine"


@pytest.mark.parametrize("words", ["--read photos", "--write s3://", "--read s3://a,b"])
def test_an_invalid_s3_uri_is_a_usage_error(words, capsys):
    with pytest.raises(SystemExit) as end:
        with_flags(*words.split())
    assert end.value.code == 2
    assert "is not a list such as s3://bucket/prefix" in capsys.readouterr().err


def test_creating_the_roles_is_idempotent(cloud, capsys):
    iam = cloud.client("iam")
    run("--create")
    first = iam.get_role(RoleName=EXECUTION)["Role"]
    run("--create")
    assert iam.get_role(RoleName=EXECUTION)["Role"]["CreateDate"] == first["CreateDate"]
    assert len(iam.list_roles()["Roles"]) == 3
    policy = iam.get_role_policy(RoleName=TTL, PolicyName="fastai-sagemaker")["PolicyDocument"]
    assert policy["Statement"][0]["Action"] == "sagemaker:DeleteEndpoint"
    assert policy["Statement"][0]["Resource"].endswith(":endpoint/pets")
    trust = first["AssumeRolePolicyDocument"]["Statement"][0]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}


def test_somebody_elses_role_is_not_changed(cloud, capsys):
    cloud.client("iam").create_role(RoleName=EXECUTION, AssumeRolePolicyDocument="{}")
    for words in (["--create"], ["--remove"]):
        run(*words, code=2)
        assert "was not created by this tool" in capsys.readouterr().err
    assert cloud.calls["iam:PutRolePolicy"] == cloud.calls["iam:DeleteRole"] == 0


@pytest.mark.parametrize("call", ["CreateRole", "GetRole", "PutRolePolicy"])
def test_an_interrupted_command_is_completed_by_the_next(cloud, call, capsys):
    cloud.break_(f"iam:{call}", "interrupt", times=1)
    run("--create", code=130)
    run("--create")
    assert len(cloud.client("iam").list_roles()["Roles"]) == 3


def test_removing_the_roles_is_idempotent(cloud, capsys):
    run("--create")
    run("--remove")
    run("--remove")
    assert cloud.client("iam").list_roles()["Roles"] == []
    assert re.search("not found", capsys.readouterr().out)


def test_the_role_is_the_given_one_the_notebooks_or_the_projects(cloud, tmp_path):
    here, nowhere = tmp_path / "resource-metadata.json", tmp_path / "none"
    here.write_text(json.dumps({"ExecutionRoleArn": "arn:aws:iam::123456789012:role/studio"}))
    account = connect()
    with pytest.raises(CommandError, match="there is no execution role: `invoke role --create` creates one"):
        roles.find_role(account, None, "pets", nowhere)
    run("--create")
    arn = "arn:aws:iam::123456789012:role/"
    assert roles.find_role(account, None, "pets", nowhere) == arn + EXECUTION
    assert roles.find_role(account, None, "pets", here) == arn + "studio"
    assert roles.find_role(account, "mine", "pets", here) == arn + "mine"
    assert roles.find_role(account, arn + "x/y", "pets", here) == arn + "x/y"


def test_a_notebooks_role_is_found_by_its_name(cloud, tmp_path):
    arn = "arn:aws:iam::123456789012:role/notebook"
    cloud.client("sagemaker").create_notebook_instance(
        NotebookInstanceName="mine", InstanceType="ml.t2.medium", RoleArn=arn
    )
    here = tmp_path / "resource-metadata.json"
    here.write_text(json.dumps({"ResourceName": "mine", "ResourceArn": "arn"}))
    assert roles.find_role(connect(), None, "pets", here) == arn
