"""deploy/image.py: the image is built by Docker or CodeBuild, scanned by ECR, deployed by digest, removed."""

import fnmatch
import hashlib
import json
import os
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from test_endpoint_verbs import ACTIONS, allowed
from werkzeug.wrappers import Response

import endpoint
import fake_aws as aws
import fake_aws_answers
import fake_docker_cli
import image
import role
import upload
from ecr import catalogue, codebuild, docker_build, scan
from ecr.codebuild import zip_context
from fake_codebuild import GROUP, CodeBuild
from fake_registry import running as hub_running
from support import ROOT, said, value

NAME = "fastai-sagemaker-pets"
TAG = docker_build.content_tag("amd64")
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
BASE = ["--base", os.environ["BASE_IMAGE"]] if "BASE_IMAGE" in os.environ else []
REFUSED = "was not created by this tool"


@pytest.fixture
def cloud(monkeypatch):
    with aws.account(monkeypatch) as cloud:
        cloud.answer = aws.correct_container
        monkeypatch.setattr(codebuild, "PAUSE", 0.02)
        monkeypatch.setattr(scan, "LATE", 0)
        yield cloud


@pytest.fixture
def shell(cloud, tmp_path, monkeypatch):
    """A machine whose `docker` and `aws` are fake_docker_cli.py's; `calls()` are their command lines."""
    found = fake_docker_cli.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN", f"{tmp_path} {cloud.url}")

    def calls(word: str = "") -> list[dict]:
        file = tmp_path / "calls.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [one for one in lines if word in ("", one["words"][0])]

    return SimpleNamespace(calls=calls, tools=found)


@pytest.fixture
def builder(cloud, shell, tmp_path, monkeypatch):
    """CodeBuild and its role."""
    codebuild = CodeBuild(cloud, tmp_path, shell.tools)
    for call, answer in codebuild.answers.items():
        monkeypatch.setitem(fake_aws_answers.ANSWERS, call, answer)
    aws.prepare(cloud, "role", lambda: role.main(["--project", "pets", "--create"]), tmp_path / "pets")
    yield codebuild
    codebuild.end()


@pytest.fixture
def run(cloud, tmp_path, capsys):
    """`invoke image`, in this process; returns its output."""

    def run(*words, code=0):
        capsys.readouterr()
        places = ["--project", "pets", "--build", str(tmp_path / "pets")]
        assert image.main([*places, *words]) == code, "".join(capsys.readouterr())
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return said.out + said.err

    return run


def written(tmp_path) -> dict:
    return json.loads((tmp_path / "pets" / "image.json").read_text())


def left(cloud) -> list[str]:
    """What was created for images, by AWS's own lists."""
    found = [one["repositoryName"] for one in cloud.client("ecr").describe_repositories()["repositories"]]
    found += cloud.client("codebuild").list_projects()["projects"]
    found += [one["logGroupName"] for one in cloud.client("logs").describe_log_groups()["logGroups"]]
    found += [one["RoleName"] for one in cloud.client("iam").list_roles()["Roles"]]
    return found + cloud.objects()


def foreign(cloud) -> dict:
    """Somebody else's repository of our name."""
    return cloud.client("ecr").create_repository(repositoryName=NAME)


# --- with Docker on this machine


def test_docker_builds_and_pushes_and_image_json_has_the_digest(cloud, shell, run, tmp_path):
    said = run()
    assert f"{TAG}: built by Docker on this machine" in said
    assert (
        "109 MB; ECR stores it for $0.01 a month (us-east-1, 2026-10-01) until `invoke image --delete`"
        in said
    )
    facts = written(tmp_path)
    (found,) = cloud.client("ecr").describe_images(repositoryName=NAME)["imageDetails"]
    registry = f"123456789012.dkr.ecr.{aws.REGION}.amazonaws.com/{NAME}"
    assert facts["uri"] == f"{registry}@{found['imageDigest']}"
    assert (facts["tag"], facts["architecture"], facts["account"]) == (TAG, "amd64", "123456789012")
    assert [one["words"][-1] for one in shell.calls("push")] == [f"{registry}:{TAG}"]
    (built,) = shell.calls("build")
    assert built["attestations"] == "1"
    assert built["words"][-1] == str(ROOT / "serve")


def test_the_repository_scans_on_push_keeps_five_and_has_immutable_tags(cloud, shell, run):
    run()
    ecr = cloud.client("ecr")
    (found,) = ecr.describe_repositories()["repositories"]
    assert found["imageTagMutability"] == "IMMUTABLE"
    assert found["imageScanningConfiguration"] == {"scanOnPush": True}
    (rule,) = json.loads(ecr.get_lifecycle_policy(repositoryName=NAME)["lifecyclePolicyText"])["rules"]
    assert (rule["selection"]["countNumber"], rule["selection"]["tagStatus"]) == (5, "any")
    tags = ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
    assert tags == [{"Key": "fastai-sagemaker:project", "Value": "pets"}]


def test_the_token_is_in_no_argument_and_no_file_that_remains(cloud, shell, run, capsys):
    said = run()
    (login,) = shell.calls("login")
    assert login["words"] == ["login", "--username", "AWS", "--password-stdin", login["words"][-1]]
    assert login["stdin"] == "123456789012-auth-token"
    assert not any(login["stdin"] in " ".join(one["words"]) for one in shell.calls())
    assert login["stdin"] not in said
    (push,) = shell.calls("push")
    assert push["config"] == login["config"]
    assert not os.path.exists(login["config"])


def test_an_unchanged_image_is_built_once(cloud, shell, run, tmp_path):
    run()
    facts, before = written(tmp_path), cloud.calls.copy()
    assert f"{TAG}: already pushed" in run()
    changed = [
        call for call in cloud.calls - before if not call.startswith(("sts:Get", "ecr:Desc", "ecr:List"))
    ]
    assert changed == []
    assert (written(tmp_path), len(shell.calls("build"))) == (facts, 1)


def test_graviton_has_its_own_image(cloud, shell, run, tmp_path):
    run()
    run("--instance", "ml.c7g.large")
    assert written(tmp_path)["tag"] == docker_build.content_tag("arm64")
    assert "linux/arm64" in shell.calls("build")[-1]["words"]
    assert len(cloud.client("ecr").describe_images(repositoryName=NAME)["imageDetails"]) == 2
    run("--instance", "ml.c7g.large", "--kind", "serverless")
    assert written(tmp_path)["tag"] == TAG


@pytest.mark.parametrize("kind", ["oci", "index"])
def test_an_oci_manifest_is_replaced_by_dockers(cloud, shell, run, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("MANIFEST", kind)
    assert "manifest changed from OCI's format to Docker's" in run()
    (found,) = cloud.client("ecr").describe_images(repositoryName=NAME)["imageDetails"]
    assert (found["imageManifestMediaType"], found["imageTags"]) == (DOCKER, [TAG])
    answer = cloud.client("ecr").batch_get_image(repositoryName=NAME, imageIds=[{"imageTag": TAG}])
    manifest = json.loads(answer["images"][0]["imageManifest"])
    assert manifest == fake_docker_cli.manifest("docker", TAG)
    assert written(tmp_path)["digest"] == found["imageDigest"]
    assert "changed" not in run()


@pytest.mark.parametrize(
    "call", ["PutImage", "BatchDeleteImage", "BatchGetImage", "DescribeImages", "CreateRepository"]
)
@pytest.mark.parametrize("after", [0, 1])
def test_after_ctrl_c_at_any_moment_the_same_command_continues(cloud, shell, run, monkeypatch, call, after):
    monkeypatch.setenv("MANIFEST", "oci")
    cloud.break_(f"ecr:{call}", "interrupt", times=1, after=after)
    places = ["--project", "pets", "--build", os.environ["STANDIN"].split()[0] + "/pets"]
    assert image.main(places) in (0, 130)
    run()
    (found,) = cloud.client("ecr").describe_images(repositoryName=NAME)["imageDetails"]
    assert (found["imageManifestMediaType"], found["imageTags"]) == (DOCKER, [TAG])


@pytest.mark.parametrize("call", ["CreateRepository", "PutLifecyclePolicy", "PutImage", "BatchDeleteImage"])
@pytest.mark.parametrize("fault", ["throttle", "500", "cut"])
def test_a_fault_that_happens_once_is_retried(cloud, shell, run, monkeypatch, call, fault):
    monkeypatch.setenv("MANIFEST", "oci")
    cloud.break_(f"ecr:{call}", fault, times=1)
    run()
    assert cloud.injected


@pytest.mark.parametrize("word", ["build", "login", "push"])
def test_a_docker_that_fails_is_a_sentence(cloud, shell, run, monkeypatch, tmp_path, word):
    monkeypatch.setenv("FAIL", word)
    assert "error: Docker could not" in run(code=3)
    assert not (tmp_path / "pets").exists()


def test_an_image_for_another_processor_names_codebuild(cloud, shell, run, monkeypatch):
    monkeypatch.setenv("FAIL", "linux/arm64")
    monkeypatch.setattr(docker_build.platform, "machine", lambda: "x86_64")
    assert "this machine is amd64 and the image arm64" in run("--instance", "ml.c7g.large", code=3)


def test_somebody_elses_repository_is_not_changed(cloud, shell, run):
    foreign(cloud)
    assert f"the ECR repository {NAME} {REFUSED}" in run(code=2)
    assert REFUSED in run("--delete", "--yes", code=2)
    assert (len(left(cloud)), shell.calls("build")) == (1, [])


@pytest.mark.parametrize("words", [["--instance", "ml.g5.xlarge"], ["--instance", "ml.inf2.xlarge"]])
def test_there_is_no_slim_image_for_accelerators(cloud, shell, run, words):
    assert "accelerator: use stack ray" in run(*words, code=2)


def test_no_engine_is_a_sentence_with_builder_docker(cloud, shell, run, monkeypatch):
    monkeypatch.setenv("FAIL", "info")
    assert "no Docker engine responds" in run("--builder", "docker", code=3)


def test_no_credentials_is_a_sentence(monkeypatch, capsys):
    aws.without_credentials(monkeypatch)
    assert image.main(["--project", "pets"]) == 3
    assert capsys.readouterr().err.startswith("error: no AWS credentials were found")


# --- the scan


def findings(cloud, *severities, status="COMPLETE", enhanced=False):
    """What ECR's scan of the next image will find."""
    many = {severity: severities.count(severity) for severity in severities}
    rows = [
        {
            "name": f"CVE-2026-{number:04}",
            "severity": severity,
            "attributes": [
                {"key": "package_name", "value": "openssl"},
                {"key": "package_version", "value": "3.5.1"},
            ],
        }
        for number, severity in enumerate(severities)
    ]
    if enhanced:
        rows = [
            {
                "severity": row["severity"],
                "title": row["name"],
                "packageVulnerabilityDetails": {
                    "vulnerabilityId": row["name"],
                    "vulnerablePackages": [{"name": "openssl", "version": "3.5.1"}],
                },
            }
            for row in rows
        ]
    key = "enhancedFindings" if enhanced else "findings"
    result = {
        "registryId": "123456789012",
        "repositoryName": NAME,
        "imageId": {},
        "imageScanStatus": {"status": status, "description": "as the test wants it"},
        "imageScanFindings": {key: rows, "findingSeverityCounts": many},
    }
    cloud.moto.call("add_scan_result", result=result)


@pytest.mark.parametrize("enhanced", [False, True], ids=["of ECR's own", "of Inspector's"])
def test_findings_are_counted_and_the_worst_are_shown(cloud, shell, run, tmp_path, enhanced):
    findings(cloud, "LOW", "MEDIUM", "HIGH", "LOW", "LOW", "LOW", "CRITICAL", enhanced=enhanced)
    said = run()
    assert "scan: 1 CRITICAL, 1 HIGH, 1 MEDIUM, 4 LOW" in said
    lines = [line.split() for line in said.splitlines() if line.startswith("  ")]
    assert lines[0] == ["CRITICAL", "CVE-2026-0006", "openssl", "3.5.1"]
    assert lines[-1] == ["...", "and", "2", "more,", "in", "ECR's", "console"]
    assert written(tmp_path)["tag"] == TAG


def test_findings_fail_the_command_only_with_fail_on(cloud, shell, run, tmp_path):
    findings(cloud, "HIGH", "HIGH")
    assert "the image has 2 findings that are CRITICAL or HIGH" in run("--fail-on", "high", code=1)
    assert not (tmp_path / "pets" / "image.json").exists()
    run("--fail-on", "critical")
    assert written(tmp_path)["tag"] == TAG


def test_a_scan_without_a_result_is_reported_and_fails_with_fail_on(cloud, shell, run):
    findings(cloud, status="UNSUPPORTED_IMAGE")
    assert "scan: UNSUPPORTED_IMAGE, so nothing is known of the image: as the test wants it" in run()
    assert "--fail-on needs its result" in run("--fail-on", "critical", code=1)


def test_waiting_for_a_scan_has_a_limit(cloud, shell, run, monkeypatch):
    monkeypatch.setattr(scan, "LIMIT", 0.05)
    findings(cloud, status="IN_PROGRESS")
    assert "scan: IN_PROGRESS" in run()


# --- with CodeBuild


def test_codebuild_builds_these_files_and_pushes_the_image(cloud, builder, shell, run, tmp_path):
    said = run("--builder", "codebuild", "--instance", "ml.c7g.large")
    tag = docker_build.content_tag("arm64")
    assert f"{tag}: built by CodeBuild, for $0.0034 a minute (us-east-1, 2026-11-22)" in said
    assert "at most $0.06 a build" in said
    assert "codebuild: build\n" in said
    assert "  Step 1/1 : FROM base" in said
    assert written(tmp_path)["tag"] == tag
    login, build, push = (shell.calls(word)[-1] for word in ("login", "build", "push"))
    assert login["stdin"] == "a-password\n"
    uri = f"123456789012.dkr.ecr.{aws.REGION}.amazonaws.com/{NAME}:{tag}"
    assert build["words"] == ["build", "--platform", "linux/arm64", "--tag", uri, "."]
    assert (build["attestations"], push["words"]) == ("1", ["push", "--quiet", uri])
    unpacked = {file.name: file.read_bytes() for file in (tmp_path / "build-1").iterdir()}
    assert unpacked == {name: file.read_bytes() for name, file in docker_build.build_files().items()}


def test_codebuilds_project_runs_docker_with_a_time_limit_and_its_own_log(cloud, builder, run):
    run("--builder", "codebuild")
    (made,) = cloud.client("codebuild").batch_get_projects(names=[NAME])["projects"]
    assert made["environment"]["privilegedMode"]
    assert made["timeoutInMinutes"] == 15
    assert made["serviceRole"] == f"arn:aws:iam::123456789012:role/{NAME}-build"
    assert made["logsConfig"]["cloudWatchLogs"]["groupName"] == GROUP
    (request,) = builder.requests
    assert request["imageOverride"] == "aws/codebuild/amazonlinux-x86_64-standard:6.0"
    assert request["environmentTypeOverride"] == "LINUX_CONTAINER"
    assert request["buildspecOverride"] == (ROOT / "deploy/ecr/buildspec.yml").read_text()


def test_without_docker_codebuild_builds_and_gets_the_base_image(
    cloud, builder, shell, run, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAIL", "info")
    run("--base", "mine:1")
    assert shell.calls("build")[0]["words"][3:5] == ["--build-arg", "BASE=mine:1"]
    assert written(tmp_path)["base"] == "mine:1"
    assert written(tmp_path)["tag"] != TAG


def test_the_build_role_has_the_permissions_of_a_build_only(cloud, builder):
    iam = cloud.client("iam")
    made = iam.get_role(RoleName=f"{NAME}-build")["Role"]
    trust = made["AssumeRolePolicyDocument"]["Statement"][0]
    assert trust["Principal"] == {"Service": "codebuild.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}
    policy = iam.get_role_policy(RoleName=f"{NAME}-build", PolicyName="fastai-sagemaker")["PolicyDocument"]

    def may(action: str, resource: str) -> bool:
        return any(
            action in one["Action"] and any(fnmatch.fnmatchcase(resource, pattern) for pattern in patterns)
            for one in policy["Statement"]
            for patterns in [one["Resource"] if isinstance(one["Resource"], list) else [one["Resource"]]]
        )

    here = f"{aws.REGION}:123456789012"
    bucket = f"arn:aws:s3:::sagemaker-{aws.REGION}-123456789012"
    assert may("s3:GetObject", f"{bucket}/pets/image/{TAG}.zip")
    assert not may("s3:GetObject", f"{bucket}/pets/capture/a.jsonl")
    assert not may("s3:PutObject", f"{bucket}/pets/image/{TAG}.zip")
    assert may("ecr:PutImage", f"arn:aws:ecr:{here}:repository/{NAME}")
    assert not may("ecr:PutImage", f"arn:aws:ecr:{here}:repository/{NAME}-other")
    assert may("logs:PutLogEvents", f"arn:aws:logs:{here}:log-group:{GROUP}:log-stream:1")
    assert not may("logs:PutLogEvents", f"arn:aws:logs:{here}:log-group:{GROUP}-other:log-stream:1")


def test_without_its_role_nothing_is_created(cloud, builder, run):
    role.main(["--project", "pets", "--remove"])
    said = run("--builder", "codebuild", code=2)
    assert f"CodeBuild needs the role {NAME}-build: `invoke role --create` creates it" in said
    assert left(cloud) == []


def test_a_bucket_in_another_region_is_rejected(cloud, builder, run):
    """By the same sentence as package/upload.py."""
    place = {"LocationConstraint": "us-west-2"}
    cloud.client("s3", "us-west-2").create_bucket(Bucket="mine", CreateBucketConfiguration=place)
    said = run("--builder", "codebuild", "--bucket", "mine", code=2)
    assert f"the bucket mine is in us-west-2, but the endpoint would be in {aws.REGION}: " in said
    assert "set AWS_DEFAULT_REGION, or name another bucket" in said
    assert builder.requests == []


def test_somebody_elses_codebuild_project_is_not_changed(cloud, builder, run):
    cloud.client("codebuild").create_project(
        name=NAME,
        source={"type": "S3", "location": "theirs/x.zip"},
        artifacts={"type": "NO_ARTIFACTS"},
        environment={"type": "LINUX_CONTAINER", "image": "x", "computeType": "BUILD_GENERAL1_SMALL"},
        serviceRole="arn:aws:iam::123456789012:role/theirs",
    )
    assert f"the CodeBuild project {NAME} {REFUSED}" in run("--builder", "codebuild", code=2)
    assert builder.requests == []


def test_a_build_that_fails_is_explained(cloud, builder, run, monkeypatch, tmp_path):
    monkeypatch.setenv("FAIL", "build")
    said = run("--builder", "codebuild", code=1)
    error = said.partition("error: ")[2]
    assert (
        "the build ended as FAILED in BUILD: Error while executing: exit status 17, its log ends with"
        in error
    )
    assert "docker: something went wrong with build" in error
    assert not (tmp_path / "pets" / "image.json").exists()
    monkeypatch.delenv("FAIL")
    run("--builder", "codebuild")
    assert len(builder.requests) == 2


def test_an_interrupted_build_continues_and_the_same_command_follows_it(cloud, builder, run, tmp_path):
    builder.hold.clear()
    cloud.break_("codebuild:BatchGetBuilds", "interrupt", times=1, after=1)
    said = run("--builder", "codebuild", code=130)
    assert (
        "the build continues in your account, for 15 minutes at most; the same command follows it again"
        in said
    )
    threading.Timer(0.5, builder.hold.set).start()
    said = run("--builder", "codebuild")
    assert f"{NAME}:0: a build of this image is already running; following it" in said
    assert len(builder.requests) == 1
    assert written(tmp_path)["tag"] == TAG


def test_a_running_build_of_another_image_is_not_followed(cloud, builder, run):
    builder.hold.clear()
    cloud.break_("codebuild:BatchGetBuilds", "interrupt", times=1)
    run("--builder", "codebuild", "--instance", "ml.c7g.large", code=130)
    threading.Timer(0.5, builder.hold.set).start()
    run("--builder", "codebuild")
    assert len(builder.requests) == 2


@pytest.mark.parametrize(
    "call", ["s3:PutObject", "codebuild:CreateProject", "codebuild:StartBuild", "logs:GetLogEvents"]
)
@pytest.mark.parametrize("fault", ["throttle", "500"])
def test_a_fault_of_codebuild_that_happens_once_is_retried(cloud, builder, run, call, fault):
    cloud.break_(call, fault, times=1)
    run("--builder", "codebuild")
    assert cloud.injected
    assert len(builder.requests) == 1


@pytest.mark.parametrize(
    "call", ["s3:PutObject", "codebuild:CreateProject", "codebuild:StartBuild", "ecr:PutLifecyclePolicy"]
)
def test_a_denied_call_is_a_sentence(cloud, builder, run, call):
    cloud.break_(call, "denied")
    said = run("--builder", "codebuild", code=3)
    assert "error: your AWS identity may not" in said
    assert "`invoke role` prints the policy" in said


def test_the_zip_is_reproducible(tmp_path, monkeypatch):
    first = zip_context()
    for file in docker_build.build_files().values():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        os.utime(tmp_path / file.name, (0, 0))
    monkeypatch.setattr(docker_build, "SERVE_FOLDER", tmp_path)
    assert hashlib.sha256(zip_context()).digest() == hashlib.sha256(first).digest()


def test_the_prices_have_dates_and_sources():
    facts = [*catalogue.TABLE["codebuild"]["per_minute"].values(), catalogue.TABLE["ecr"]["per_gb_month"]]
    for one in facts:
        assert time.strptime(one["date"], "%Y-%m-%d")
        assert one["source"]
        assert 0 < one["price"] < 1


# --- removal


def test_the_image_builders_policies_allow_every_call(cloud, builder, run, monkeypatch, capsys):
    monkeypatch.setenv("MANIFEST", "index")
    run()
    run("--builder", "codebuild", "--instance", "ml.c7g.large")
    builder.hold.clear()
    cloud.break_("codebuild:BatchGetBuilds", "interrupt", times=1, after=1)
    run("--builder", "codebuild", "--base", "another", code=130)
    run("--delete", "--yes")
    capsys.readouterr()
    assert role.main(["--project", "pets"]) == 0
    documents = json.loads(capsys.readouterr().out)
    allowed_ = allowed(documents["deployer"]["policy"]) | allowed(documents["image_builder"]["policy"])
    administrators = {"iam:CreateRole", "iam:UpdateAssumeRolePolicy", "iam:PutRolePolicy"}
    administrators |= {"iam:DeleteRole", "iam:DeleteRolePolicy"}
    made = {call for call in cloud.calls if not call.startswith("sts:")} - administrators
    assert {ACTIONS.get(call, call) for call in made} - allowed_ == set()
    assert len(made) > 20


def test_delete_removes_everything_and_can_be_repeated(cloud, builder, run, tmp_path):
    cloud.client("logs").create_log_group(logGroupName=GROUP + "-other")
    run("--builder", "codebuild")
    said = run("--delete", code=2)
    assert "stdin is not a terminal: pass --yes to confirm" in said
    for what in (
        f"images         {NAME}",
        f"builder        {NAME}",
        f"role           {NAME}-build",
        "/pets/image/",
    ):
        assert what in said
    run("--delete", "--yes")
    assert set(left(cloud)) == {GROUP + "-other", NAME, f"{NAME}-ttl"}  # the other two roles
    assert not (tmp_path / "pets" / "image.json").exists()
    assert "no image of pets is on AWS" in run("--delete", "--yes")


def test_delete_stops_a_build_that_is_running(cloud, builder, run):
    builder.hold.clear()
    cloud.break_("codebuild:BatchGetBuilds", "interrupt", times=1, after=1)
    run("--builder", "codebuild", code=130)
    run("--delete", "--yes")
    assert builder.builds[f"{NAME}:0"]["buildStatus"] == "STOPPED"


def test_a_role_that_may_not_be_deleted_is_kept_with_a_note(cloud, builder, run):
    run("--builder", "codebuild")
    cloud.break_("iam:DeleteRolePolicy", "denied")
    said = run("--delete", "--yes")
    assert f"note: the role {NAME}-build is kept" in said
    assert "removed role" not in said


def test_an_image_that_a_live_endpoint_uses_is_deleted_only_with_yes(cloud, builder, run, deploy):
    run("--builder", "codebuild")
    deploy()
    said = run("--delete", code=1)
    assert "the endpoint pets uses" in said
    assert "could not start another instance without it: delete it first with `invoke destroy`" in said
    assert "note: the endpoint pets uses" in run("--delete", "--yes")
    assert cloud.client("ecr").describe_repositories()["repositories"] == []


def test_destroy_with_data_removes_the_images(cloud, builder, run, deploy, tmp_path, capsys):
    run("--builder", "codebuild")
    deploy()
    place = ["--project", "pets", "--build", str(tmp_path / "pets"), "--yes"]
    assert endpoint.main(["destroy", *place]) == 0
    assert cloud.client("ecr").describe_repositories()["repositories"]
    assert endpoint.main(["destroy", *place, "--data"]) == 0
    assert set(left(cloud)) == {NAME, f"{NAME}-build", f"{NAME}-ttl"}  # roles, which cost nothing


# --- deployment


@pytest.fixture
def deploy(cloud, tmp_path, capsys):
    """`invoke deploy --stack slim`; returns its output."""
    folder = tmp_path / "pets"

    def deploy(*words, code=0):
        role.main(["--project", "pets", "--create"])
        aws.build(folder)
        archive = ["--archive", str(folder / "model.tar.gz"), "--out", str(folder / "uploaded.json")]
        assert upload.main([*archive, "--project", "pets"]) == 0
        capsys.readouterr()
        place = ["--project", "pets", "--build", str(folder), "--stack", "slim"]
        assert endpoint.main(["deploy", *place, *words]) == code, capsys.readouterr()
        return "".join(capsys.readouterr())

    return deploy


@pytest.fixture
def models(monkeypatch):
    """CreateModel's requests: moto forgets whether a model is isolated."""
    requests = []

    def create_model(cloud, request, given):
        requests.append(given)
        return fake_aws_answers.create_model(cloud, request, given)

    monkeypatch.setitem(fake_aws_answers.ANSWERS, "sagemaker:CreateModel", create_model)
    return requests


def test_what_was_scanned_is_what_runs_without_a_network(cloud, shell, run, deploy, models, tmp_path):
    run()
    assert "pets is live" in deploy()
    (made,) = models
    assert made["PrimaryContainer"]["Image"] == written(tmp_path)["uri"]
    assert made["PrimaryContainer"]["Environment"] == {"SERVE_URLS": "off"}
    assert made["EnableNetworkIsolation"]


@pytest.mark.parametrize(
    ("words", "isolated", "environment"),
    [
        (["--isolation", "off"], False, {}),
        (["--kind", "serverless"], False, {"SERVE_URLS": "off"}),
        (["--kind", "serverless", "--isolation", "off"], False, {}),
        (["--kind", "async"], True, {"SERVE_URLS": "off"}),
    ],
)
def test_isolation_is_as_set_and_by_default_on_where_aws_supports_it(
    cloud, shell, run, deploy, models, words, isolated, environment
):
    run()
    assert "pets is live" in deploy(*words)
    (made,) = models
    assert made["EnableNetworkIsolation"] is isolated
    assert made["PrimaryContainer"]["Environment"] == environment


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--instance", "ml.c7g.large"], "run `invoke image --instance ml.c7g.large`"),
        (["--instance", "ml.g5.xlarge"], "computes on the CPU and would not use ml.g5.xlarge's accelerator"),
        (["--kind", "serverless", "--isolation", "on"], "serverless endpoint cannot have isolation"),
        (["--kind", "serverless", "--instance", "ml.c7g.large"], "serverless endpoint cannot have instance"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(cloud, shell, run, deploy, words, says):
    run()
    assert says in deploy(*words, code=2)
    assert cloud.resources() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, "does not say which image to run: run `invoke image`"),
        (
            {"region": "us-east-1"},
            "the image is in us-east-1 of account 123456789012, and you are in eu-west-1",
        ),
        ({"tag": "0123456789ab-amd64"}, f"the image 0123456789ab-amd64 is not the required {TAG}"),
        ({"bytes": 11e9}, "serverless takes images of at most 10 GB, and this has 11.0"),
    ],
    ids=["none", "in another Region", "of older code", "too large"],
)
def test_an_image_that_does_not_fit_is_rejected(cloud, shell, run, deploy, tmp_path, change, says):
    run()
    file = tmp_path / "pets" / "image.json"
    facts = written(tmp_path)
    file.unlink() if change is None else file.write_text(json.dumps(facts | change))
    assert says in deploy("--kind", "serverless", code=2)


def test_invoke_deploy_builds_the_image_first_and_only_for_slim():
    check, upload, deploy = said("deploy")
    assert ("--check" in check, upload[0], "--check" in deploy) == (True, "package/upload.py", False)
    checked, _, made, deployed = said("deploy", "--stack", "slim", "--instance", "ml.c7g.large")
    assert {"deploy", "--check", "--stack=slim"} <= set(checked)  # before a build is billed
    assert made[0] == "deploy/image.py"
    assert (value(made, "--instance"), value(made, "--kind")) == ("ml.c7g.large", "real-time")
    assert value(made, "--build") == value(deployed, "--build")
    made, run = said("transform", "s3://a/b", "s3://c/d", INVOKE_DEPLOY_STACK="slim")
    assert (made[0], run[1]) == ("deploy/image.py", "transform")
    (made,) = said("image", "--instance", "ml.c7g.large", "--fail-on", "high")
    assert (value(made, "--instance"), value(made, "--fail-on")) == ("ml.c7g.large", "high")
    (made,) = said("image", "--delete", "--yes")
    assert {"--delete", "--yes"} <= set(made)


# --- with a real Docker engine


PASSWORD = "123456789012-auth-token"


@pytest.fixture
def hub(docker, cloud, monkeypatch):
    """A registry that a real Docker can push to, in ECR's place; its manifests are in moto's ECR."""
    with hub_running(cloud, PASSWORD) as hub:

        def describe(cloud, request, given):
            reply = Response.from_app(cloud.moto, request.environ)
            registry = f"123456789012.dkr.ecr.{aws.REGION}.amazonaws.com"
            return Response(reply.get_data().replace(registry.encode(), hub.address.encode()), reply.status)

        monkeypatch.setitem(fake_aws_answers.ANSWERS, "ecr:DescribeRepositories", describe)
        yield hub


def loadable(hub, tag: str) -> dict:
    """The configuration of the image that was pushed, all of whose layers are complete."""
    (found,) = hub.cloud.client("ecr").batch_get_image(repositoryName=NAME, imageIds=[{"imageTag": tag}])[
        "images"
    ]
    manifest = json.loads(found["imageManifest"])
    assert manifest["mediaType"] == DOCKER
    assert {one["digest"] for one in manifest["layers"]} <= set(hub.blobs)
    return json.loads(hub.blobs[manifest["config"]["digest"]])


def test_a_real_docker_builds_and_pushes(hub, run, tmp_path):
    run("--builder", "docker", *BASE)
    facts = written(tmp_path)
    configuration = loadable(hub, facts["tag"])
    assert configuration["config"]["Entrypoint"] == ["python3", "/opt/serve/container.py"]
    assert (configuration["architecture"], configuration["os"]) == (docker_build.host_architecture(), "linux")
    name = f"{hub.address}/{NAME}:{facts['tag']}"
    assert not docker_build.has_image(name)  # Docker keeps only the build's own name
    assert "already pushed" in run("--builder", "docker", *BASE)


def test_the_buildspec_with_a_real_docker(hub, builder, run, tmp_path, monkeypatch):
    """As CodeBuild would: the zip in a clean folder, a real shell and Docker; only `aws` is not real."""
    (tmp_path / "bin" / "docker").unlink()
    monkeypatch.setenv("PASSWORD", PASSWORD)
    run("--builder", "codebuild", *BASE)
    assert loadable(hub, written(tmp_path)["tag"])["config"]["Cmd"] == ["serve"]
    name = f"{hub.address}/{NAME}:{written(tmp_path)['tag']}"
    subprocess.run(["docker", "image", "rm", name], capture_output=True, check=True)
