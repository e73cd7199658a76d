"""Every command that calls AWS, for test_endpoint_faults.py: what runs before it, and its calls."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import pytest

import endpoint
import fake_aws
import role
import upload
from fake_aws import FakeAccount, build
from fake_aws_answers import REGION

PICTURES = "s3://pictures/"  # the user's own bucket
FULL = "--ttl 4h --max 2 --guard on"
LARGE = bytes(9 * 2**20)  # two parts
REASON = "The primary container for production variant AllTraffic did not pass the ping health check."
LOGS = {"logGroupName": "/aws/sagemaker/Endpoints/pets"}


@dataclass
class Pets:
    """A project, the account that it is in, and a terminal."""

    cloud: FakeAccount
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, words: str) -> tuple[int, str]:
        """Run a command in this process; the exit code and the output."""
        verb, *rest = words.split()
        self.capsys.readouterr()
        code = self.script(verb)([*rest, "--project", "pets"])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    def script(self, verb: str) -> Callable[[list[str]], int]:
        """What Invoke runs for a verb."""
        archive, out = self.folder / "model.tar.gz", self.folder / "uploaded.json"
        places = ["--archive", str(archive), "--out", str(out)]
        return {
            "upload": lambda words: upload.main([*places, *words]),
            "role": role.main,
        }.get(verb, lambda words: endpoint.main([verb, "--build", str(self.folder), *words]))

    def done(self, *commands: str) -> None:
        """Run commands that must succeed."""
        for words in commands:
            code, said = self(words)
            assert code == 0, said

    def resources(self) -> list[str]:
        """Everything in the account that was made for the project."""
        logs, sagemaker = self.cloud.client("logs"), self.cloud.client("sagemaker")
        jobs = sagemaker.list_transform_jobs()["TransformJobSummaries"]
        going = [one["TransformJobName"] for one in jobs if one["TransformJobStatus"] == "InProgress"]
        groups = [one["logGroupName"] for one in logs.describe_log_groups()["logGroups"]]
        objects = [one for one in self.cloud.objects() if not one.startswith(PICTURES)]
        return self.cloud.resources() + going + groups + objects

    def endpoint(self) -> dict:
        """The endpoint as AWS describes it."""
        return self.cloud.client("sagemaker").describe_endpoint(EndpointName="pets")


# --- what runs before


def nothing(pets: Pets) -> None:
    """An empty account."""


def parts(pets: Pets) -> None:
    """An archive that is uploaded in parts."""
    build(pets.folder, archive=LARGE)


def remembered(before: Callable[["Pets"], None]) -> Callable[["Pets"], None]:
    """Prepare it once in this process, and copy the result from then on."""

    @wraps(before)
    def prepare(pets: Pets) -> None:
        fake_aws.prepare(pets.cloud, before.__name__, lambda: before(pets), pets.folder)

    return prepare


@remembered
def roles(pets: Pets) -> None:
    """`invoke role --create`."""
    pets.done("role --create")


@remembered
def packaged(pets: Pets) -> None:
    """`invoke package`: the archive is in S3."""
    pets.done("role --create", "upload")


def failing(pets: Pets) -> None:
    """The next endpoint will fail; its container has logged the reason."""
    packaged(pets)
    write(pets.cloud)
    pets.cloud.outcomes["any"] = ("Failed", REASON)


@remembered
def failed(pets: Pets) -> None:
    """The endpoint has failed after deploy was interrupted, so that nothing was rolled back."""
    failing(pets)
    pets.cloud.break_("sagemaker:DescribeEndpoint", "interrupt", times=1, after=1)
    assert pets("deploy")[0] == 130
    pets.cloud.client("sagemaker").describe_endpoint(EndpointName="pets")
    assert pets.endpoint()["EndpointStatus"] == "Failed"
    pets.cloud.outcomes.clear()


@remembered
def deployed(pets: Pets) -> None:
    """There is an endpoint."""
    packaged(pets)
    pets.done("deploy")


@remembered
def repackaged(pets: Pets) -> None:
    """There is an endpoint, and another archive."""
    deployed(pets)
    build(pets.folder, archive=b"two")
    pets.done("upload")


def failing_update(pets: Pets) -> None:
    """The other archive will not start."""
    repackaged(pets)
    write(pets.cloud)
    pets.cloud.outcomes["any"] = ("Failed", REASON)


@remembered
def updated(pets: Pets) -> None:
    """The endpoint serves its second archive."""
    repackaged(pets)
    pets.done("deploy")


@remembered
def full(pets: Pets) -> None:
    """All that a project can have: an endpoint, alarms, a running transform, an unfinished upload."""
    packaged(pets)
    place = {"Bucket": f"sagemaker-{REGION}-123456789012", "Key": "pets/0123456789ab/model.tar.gz"}
    pets.cloud.client("s3").create_multipart_upload(**place)
    pets.done(f"deploy {FULL}")
    build(pets.folder, archive=b"two")
    pets.done("upload", f"deploy {FULL}")
    write(pets.cloud)
    put_photo(pets.cloud)
    pets.cloud.job_outcome = ("InProgress", "")  # for long
    pets.cloud.break_("sagemaker:DescribeTransformJob", "interrupt", times=1)
    assert pets(TRANSFORM)[0] == 130


def photos(pets: Pets) -> None:
    """There is an archive, and a picture in S3."""
    packaged(pets)
    put_photo(pets.cloud)


def put_photo(cloud: FakeAccount) -> None:
    """A picture in the user's own bucket."""
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="pictures", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="pictures", Key="in/cat.jpg", Body=b"\xff\xd8\xffcat")


def write(cloud: FakeAccount) -> None:
    """The endpoint's container logs a line."""
    logs, stream = cloud.client("logs"), {"logStreamName": "AllTraffic/i-0123456789abcdef"}
    logs.create_log_group(**LOGS)
    logs.create_log_stream(**LOGS, **stream)
    event = {"timestamp": int(time.time() * 1000) + 30_000, "message": "ready"}
    logs.put_log_events(**LOGS, **stream, logEvents=[event])


# --- the commands


@dataclass(frozen=True)
class Command:
    """A command line, what runs before it, all its calls, and its exit code without a fault.

    `like` is a command that makes some of the calls in the same way: they get faults there alone.
    """

    words: str
    before: Callable[[Pets], None]
    calls: str
    like: str = ""
    code: int = 0


TRANSFORM = f"transform {PICTURES}in {PICTURES}out"
PLAN = (
    "sts:GetCallerIdentity iam:GetRole sagemaker:DescribeEndpoint s3:HeadObject iam:SimulatePrincipalPolicy"
)
MAKE = """sagemaker:DescribeModel sagemaker:CreateModel sagemaker:DescribeEndpointConfig
    sagemaker:CreateEndpointConfig sagemaker:ListTags"""
NEW = f"{PLAN} {MAKE} sagemaker:CreateEndpoint"
QUOTA = "servicequotas:ListServiceQuotas"
TTL = "scheduler:UpdateSchedule scheduler:CreateSchedule"
LIVE = "sagemaker:InvokeEndpoint sagemaker:AddTags cloudwatch:DescribeAlarms"
SCALE = "application-autoscaling:RegisterScalableTarget application-autoscaling:PutScalingPolicy"
SCALED = "application-autoscaling:DescribeScalableTargets"
UNSCALE = "application-autoscaling:DeregisterScalableTarget"
CHANGE = f"sagemaker:UpdateEndpoint cloudwatch:PutMetricAlarm {SCALED}"
UNDO = """logs:DescribeLogStreams logs:GetLogEvents sagemaker:DeleteEndpointConfig
    sagemaker:ListEndpointConfigs sagemaker:DeleteModel"""
BUCKET = """sts:GetCallerIdentity s3:HeadBucket s3:CreateBucket s3:PutPublicAccessBlock s3:PutBucketEncryption
    s3:HeadObject"""
COMMANDS = {
    "upload": Command("upload", nothing, f"{BUCKET} s3:PutObject"),
    "upload in parts": Command(
        "upload",
        parts,
        f"{BUCKET} s3:CreateMultipartUpload s3:UploadPart s3:CompleteMultipartUpload",
        like="upload",
    ),
    "role": Command(
        "role --create",
        nothing,
        "sts:GetCallerIdentity iam:GetRole iam:CreateRole iam:UpdateAssumeRolePolicy iam:PutRolePolicy",
    ),
    "role --remove": Command(
        "role --remove", roles, "sts:GetCallerIdentity iam:GetRole iam:DeleteRolePolicy iam:DeleteRole"
    ),
    "deploy": Command(f"deploy {FULL}", packaged, f"{NEW} {QUOTA} {TTL} {LIVE} {SCALE}"),
    "deploy async": Command(
        "deploy --kind async --min 0 --max 2 --ttl 4h",
        packaged,
        f"{NEW} {QUOTA} {TTL} s3:PutObject sagemaker:InvokeEndpointAsync s3:GetObject sagemaker:AddTags"
        f" {SCALE} cloudwatch:PutMetricAlarm cloudwatch:DescribeAlarms",
        like="deploy",
    ),
    "deploy serverless": Command(
        "deploy --kind serverless",
        packaged,
        f"{NEW} {LIVE} {SCALED} scheduler:DeleteSchedule",
        like="deploy",
    ),
    "deploy of what fails": Command(
        f"deploy {FULL}",
        failing,
        f"{NEW} {QUOTA} {TTL} {UNDO} {UNSCALE} sagemaker:DeleteEndpoint scheduler:DeleteSchedule"
        " cloudwatch:DescribeAlarms",
        like="deploy",
        code=1,
    ),
    "deploy after a failure": Command(
        "deploy",
        failed,
        f"{PLAN} {QUOTA} sagemaker:ListTags {UNSCALE} sagemaker:DeleteEndpoint sagemaker:DescribeModel"
        f" sagemaker:DescribeEndpointConfig sagemaker:CreateEndpoint {LIVE} {SCALED}"
        " logs:DescribeLogStreams logs:GetLogEvents scheduler:DeleteSchedule",
        like="deploy",
    ),
    "update": Command(f"deploy {FULL}", repackaged, f"{PLAN} {QUOTA} {MAKE} {TTL} {CHANGE} {LIVE} {SCALE}"),
    "update to less": Command(
        "deploy --ttl none --count 2",
        full,
        f"{PLAN} {QUOTA} sagemaker:ListTags scheduler:DeleteSchedule sagemaker:DescribeModel"
        f" sagemaker:DescribeEndpointConfig sagemaker:CreateEndpointConfig sagemaker:UpdateEndpoint"
        f" {SCALED} application-autoscaling:DescribeScalingPolicies {UNSCALE} {LIVE} cloudwatch:DeleteAlarms",
        like="update",
    ),
    "update to what fails": Command(
        f"deploy {FULL}",
        failing_update,
        f"{PLAN} {QUOTA} {MAKE} {TTL} {CHANGE} {UNDO}",
        like="update",
        code=1,
    ),
    "rollback": Command(
        "deploy --rollback",
        updated,
        "sts:GetCallerIdentity sagemaker:DescribeEndpoint sagemaker:ListTags sagemaker:DescribeEndpointConfig"
        f" sagemaker:DescribeModel sagemaker:UpdateEndpoint {SCALED} {LIVE}",
    ),
    "status": Command(
        "status --all --json",
        deployed,
        "sts:GetCallerIdentity sagemaker:ListEndpoints sagemaker:ListTags sagemaker:DescribeEndpoint"
        " sagemaker:DescribeEndpointConfig sagemaker:ListEndpointConfigs sagemaker:ListModels"
        f" scheduler:GetSchedule {SCALED} cloudwatch:DescribeAlarms cloudwatch:GetMetricData",
    ),
    "logs": Command("logs --since 1h", failing, "sts:GetCallerIdentity logs:FilterLogEvents"),
    "transform": Command(
        TRANSFORM,
        photos,
        "sts:GetCallerIdentity s3:ListObjectsV2 sagemaker:ListTransformJobs iam:GetRole"
        " iam:SimulatePrincipalPolicy"
        " sagemaker:DescribeModel sagemaker:CreateModel sagemaker:CreateTransformJob"
        " sagemaker:DescribeTransformJob",
    ),
    "destroy": Command(
        "destroy --yes --data",
        full,
        "sts:GetCallerIdentity sagemaker:DescribeEndpoint sagemaker:ListTags scheduler:GetSchedule"
        f" {SCALED} sagemaker:ListTransformJobs sagemaker:ListEndpointConfigs sagemaker:ListModels"
        " cloudwatch:DescribeAlarms s3:ListMultipartUploads s3:ListObjectVersions logs:DescribeLogGroups"
        " sagemaker:DescribeModel ecr:DescribeRepositories codebuild:BatchGetProjects"
        f" scheduler:DeleteSchedule {UNSCALE} sagemaker:StopTransformJob sagemaker:DeleteEndpoint"
        " sagemaker:DeleteEndpointConfig sagemaker:DeleteModel cloudwatch:DeleteAlarms s3:DeleteObjects"
        " s3:AbortMultipartUpload logs:DeleteLogGroup",
    ),
}
