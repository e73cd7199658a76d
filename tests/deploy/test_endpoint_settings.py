"""The settings of a deployment: their effect on AWS's requests, and which are rejected before one."""

import importlib.util
import json
import re
from argparse import ArgumentParser
from pathlib import Path

import pytest

import endpoint
import fake_aws as aws
from aws.client import Aws, connect
from aws.names import check_project
from common import CommandError
from ecr import catalogue
from lifecycle import plan, settings
from lifecycle.plan import Archive

ARCHIVE = Archive("s3://bucket/pets/abc/model.tar.gz", "bucket", "abc" * 22)
ROLE = "arn:aws:iam::123456789012:role/mine"

OWN = f"123456789012.dkr.ecr.{aws.REGION}.amazonaws.com/mine:1"


@pytest.fixture(scope="module")
def account():
    """An account to which no request is sent."""
    with pytest.MonkeyPatch.context() as patch, aws.account(patch):
        yield connect()


def parsed(*words):
    parser = ArgumentParser()
    settings.add_model_arguments(parser)
    settings.add_endpoint_arguments(parser)
    args = parser.parse_args(words)
    return settings.check(args)


def made(account, *words):
    return plan.make_plan(account, "pets", Path("build"), ARCHIVE, ROLE, parsed(*words))


def variant(account, *words):
    return made(account, *words).config["ProductionVariants"][0]


def test_the_defaults(account):
    model = made(account).model
    container = model["PrimaryContainer"]
    assert re.fullmatch(
        r"\d{12}\.dkr\.ecr\.eu-west-1\.amazonaws\.com/ray:serve-ml-.*cpu-v1\.4", container["Image"]
    )
    assert container["ModelDataUrl"] == ARCHIVE.url
    assert int(container["Environment"]["RAYSERVE_BACKEND_TIMEOUT"]) < 60
    assert variant(account)["InitialInstanceCount"] == 1
    assert "DataCaptureConfig" not in made(account).config


def test_equal_settings_have_one_name_and_different_ones_have_others(account):
    assert made(account, "--count", "2").name == made(account, "--count", "2").name
    assert made(account, "--count", "2").model == made(account).model
    words = (
        ["--count", "2"],
        ["--environment", "A=1"],
        ["--capture", "all"],
        ["--kms-key", "k"],
        [],
    )
    assert len({made(account, *one).name for one in words}) == len(words)
    assert all(len(made(account, *one).name) <= 63 for one in words)


def test_network_and_keys(account):
    words = ["--subnets", "subnet-1,subnet-2", "--security-groups", "sg-1", "--isolation", "on"]
    words += ["--stack", OWN]
    one = made(account, *words, "--kms-key", "key", "--environment", "A='b c' B=", "--tags", "owner=me")
    assert one.model["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert one.model["EnableNetworkIsolation"]
    environment = one.model["PrimaryContainer"]["Environment"]
    assert (environment["SERVE_URLS"], environment["A"], environment["B"]) == ("off", "b c", "")
    assert one.config["KmsKeyId"] == "key"
    assert one.tags["owner"] == "me"


def test_pictures_are_captured_only_with_all(account):
    for which, modes in (("outputs", ["Output"]), ("all", ["Input", "Output"])):
        capture = made(account, "--capture", which).config["DataCaptureConfig"]
        assert [one["CaptureMode"] for one in capture["CaptureOptions"]] == modes
        assert capture["DestinationS3Uri"] == "s3://bucket/pets/capture"


def test_a_gpu_instance_has_its_image_and_its_ami(account):
    one = made(account, "--instance", "ml.g5.xlarge")
    assert one.model["PrimaryContainer"]["Image"].endswith("cuda-v1.4")
    assert one.config["ProductionVariants"][0]["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-gpu-3-1"
    assert "InferenceAmiVersion" not in variant(account)


def test_an_image_of_your_own(account):
    uri = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/mine:1"
    container = made(account, "--stack", uri).model["PrimaryContainer"]
    assert container["Image"] == uri
    assert "RAYSERVE_BACKEND_TIMEOUT" not in container["Environment"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--instance", "ml.c7i.lrge"], "no instance type ml.c7i.lrge: did you mean ml.c7i.large"),
        (["--instance", "ml.c7g.large"], "runs on x86 only"),
        (["--instance", "ml.inf2.xlarge"], "runs on x86 only"),
        (
            ["--instance", "ml.g5.xlarge", "--ami", "al2023-ami-sagemaker-inference-gpu-4-1"],
            "only, not on al2023",
        ),
        (["--ami", "al2-ami-sagemaker-inference-gpu-3-1"], "`ami` is for GPU instances"),
        (
            ["--stack", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/x", "--instance", "ml.g5.xlarge"],
            "needs `ami`",
        ),
        (["--stack", "public.ecr.aws/x/y:1"], "copy public.ecr.aws/x/y:1 to a private repository"),
        (["--stack", "plain"], "`stack` is ray, slim, or a private ECR image"),
        (["--stack", "123456789012.dkr.ecr.us-east-1.amazonaws.com/x"], "must be in the endpoint's Region"),
        (["--kind", "serverless", "--isolation", "on"], "serverless endpoint cannot have isolation"),
        (["--kind", "serverless", "--subnets", "a", "--security-groups", "b"], "cannot have subnets"),
        (["--kind", "serverless", "--capture", "all"], "cannot have capture"),
        (["--kind", "serverless", "--guard", "on", "--max", "3"], "cannot have guard, max"),
        (["--kind", "serverless", "--instance", "ml.g5.xlarge"], "cannot have instance"),
        (["--kind", "serverless", "--memory", "1500"], "1024 to 6144 MB in steps of 1024, not 1500"),
        (["--kind", "serverless", "--concurrency", "201"], "`concurrency` of serverless is 1 to 200"),
        (["--kind", "serverless", "--provisioned", "6"], "`provisioned` not more than it"),
        (["--min", "3"], "give both, or `count` alone"),
        (["--isolation", "on"], "fetches packages when it starts"),
        (["--subnets", "subnet-1"], "a VPC needs both"),
        (["--startup", "30"], "`startup` is 60 to 3600 seconds, not 30"),
        (["--bake", "4000"], "`bake` is at most 3600"),
        (["--min", "0", "--max", "2"], "keeps one instance at least"),
        (["--max", "2", "--count", "3"], "`count` (3) must be from `min` (1) to `max` (2)"),
        (["--tags", "aws:x=1"], "does not take: aws:x"),
        (["--tags", "fastai-sagemaker:project=1"], "does not take: fastai-sagemaker:project"),
        (["--environment", f"A={'x' * 1025}"], "over SageMaker's limits"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_aws_would_reject_is_rejected_before_a_request(account, words, says):
    with pytest.raises(CommandError) as stop:
        made(account, *words)
    assert says in str(stop.value)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "words", ["--ttl soon", "--count 0", "--guard maybe", "--capture some", "--environment A"]
)
def test_an_invalid_value_is_a_usage_error(words, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(*words.split())
    assert end.value.code == 2
    assert words.split()[1] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["my_pets", "Pets", "-pets", "pets-", "p" * 41, ""])
def test_a_project_name_that_sagemaker_rejects_is_rejected(name):
    with pytest.raises(CommandError, match="change `project`"):
        check_project(name)
    assert endpoint.main(["status", "--project", name]) == 2 if not name.startswith("-") else True


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("4h", 14400), ("2 d", 172800), ("none", 0), ("False", 0)]
)
def test_durations_are_parsed(text, seconds):
    assert settings.duration_seconds(text) == seconds


def test_botocore_accepts_every_request(account):
    """By botocore's own validation, for everything that the settings can contain."""
    words = [
        "--subnets",
        "s",
        "--security-groups",
        "g",
        "--kms-key",
        "k",
        "--capture",
        "all",
        "--isolation",
        "on",
    ]
    both = [
        made(
            account, *words, "--stack", OWN, "--instance", "ml.g5.xlarge", "--ami", catalogue.TABLE["gpu_ami"]
        ),
        made(account, "--kind", "async", *words[4:8]),
    ]
    both.append(made(account, "--kind", "serverless", "--provisioned", "2"))
    model = account("sagemaker").meta.service_model
    from botocore.validate import ParamValidator

    for one in both:
        for operation, request in (("CreateModel", one.model), ("CreateEndpointConfig", one.config)):
            report = ParamValidator().validate(request, model.operation_model(operation).input_shape)
            assert not report.has_errors(), report.generate_report()


# --- the tables


def somewhere(region, partition="aws"):
    return Aws(None, region, partition, "123456789012", "arn:aws:iam::123456789012:user/me")


def test_every_region_has_its_image():
    for region in catalogue.TABLE["accounts"]:
        assert f".dkr.ecr.{region}." in catalogue.ray_image(somewhere(region), "ml.c7i.large")
    assert catalogue.ray_image(somewhere("cn-north-1", "aws-cn"), "ml.m5.large").startswith(
        "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/ray:"
    )
    with pytest.raises(CommandError, match="AWS has no Ray image in mars-1"):
        catalogue.ray_image(somewhere("mars-1"), "ml.m5.large")


def test_the_domains_are_botocores(account):
    import botocore.loaders

    known = botocore.loaders.create_loader().load_data("partitions")["partitions"]
    domains = {one["id"]: one["outputs"]["dnsSuffix"] for one in known}
    assert {key: domains[key] for key in catalogue.TABLE["domains"] if key in domains} == {
        key: value for key, value in catalogue.TABLE["domains"].items() if key in domains
    }


@pytest.mark.skipif(not importlib.util.find_spec("sagemaker"), reason="sagemaker-core is not installed here")
def test_the_images_are_those_of_sagemaker_core():
    import sagemaker.core

    table = Path(sagemaker.core.__path__[0]) / "image_uri_config" / "ray-serve.json"
    theirs = json.loads(table.read_text())["versions"]["1.4"]
    assert theirs["registries"] == catalogue.TABLE["accounts"]
    tags = {"cpu": theirs["container_version"]["cpu"], "cuda": theirs["container_version"]["gpu"]}
    assert {key: f"{theirs['tag_prefix']}-{tag}" for key, tag in tags.items()} == catalogue.TABLE["tags"]


def test_the_ami_is_one_that_botocore_knows(account):
    model = account("sagemaker").meta.service_model
    assert catalogue.TABLE["gpu_ami"] in model.shape_for("ProductionVariantInferenceAmiVersion").enum
