"""The endpoints in an account: boto3 sends its requests over HTTP to moto's server in place of AWS."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import boto3
import botocore.session
import pytest
import requests

import actual
import moto_process
from support import ROOT

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/any"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION}
INSTANCES = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 2, "VolumeSizeInGB": 10}
MODELS = botocore.session.Session().get_component("data_loader")
CREATED = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """An empty account, and the environment to use it."""
    moto = moto_process.empty().fork()
    # Reading AWS's service models takes most of the time of a new client: read them once.
    monkeypatch.setattr(botocore.session, "create_loader", lambda *_: MODELS)
    for key, value in (KEYS | {"AWS_ENDPOINT_URL": moto.url, "XDG_CACHE_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(key, value)
    yield moto.url
    moto.close()


@pytest.fixture
def client(aws) -> Callable:
    """boto3 clients for this account."""
    return boto3.Session().client


@pytest.fixture
def deploy(client) -> Callable[..., None]:
    """Create an endpoint as deploy does it: three calls, with our tag or without."""

    def deploy(name: str, project: str | None = "pets", **variant: object) -> None:
        sagemaker = client("sagemaker")
        tags = [{"Key": "owner", "Value": "me"}] + [{"Key": actual.TAG, "Value": project}] * bool(project)
        image = {"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/ray:1"}
        sagemaker.create_model(ModelName=name, PrimaryContainer=image, ExecutionRoleArn=ROLE, Tags=tags)
        variant = {"VariantName": "AllTraffic", "ModelName": name, **(variant or INSTANCES)}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=tags)
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)

    return deploy


def tomorrow() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)


def test_endpoints_are_found_by_their_tag_with_price_age_and_the_months_end(deploy):
    deploy("pets")
    deploy("other-team", project=None)
    now = tomorrow()
    report = actual.report(None, billed=False, now=now)
    (row,) = report["endpoints"]
    per_hour = 2 * (Decimal("0.115") + 10 * Decimal("0.14") / 744)
    assert (row["endpoint"], row["project"], row["state"]) == ("pets", "pets", "InService")
    assert row["on"] == "2 x ml.m5.large"
    assert row["per_hour"] == pytest.approx(per_hour)
    assert row["age_hours"] == pytest.approx(24, abs=Decimal("0.1"))
    assert row["spent"] == pytest.approx(24 * per_hour, rel=Decimal("0.01"))
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    start = max(month, now - timedelta(days=1))
    end = (month + timedelta(days=32)).replace(day=1)
    whole = Decimal((end - start).total_seconds()) / 3600 * per_hour
    assert row["month_end"] == pytest.approx(whole, rel=Decimal("0.01"))
    assert row["billed"] is None
    assert row["not_estimated"] is None
    assert report["total"]["per_hour"] == row["per_hour"]


def test_more_endpoints_than_a_page_are_all_found_and_added(deploy):
    for number in range(12):
        deploy(f"pets-{number}", project=f"p{number}")
    report = actual.report(None, billed=False, now=tomorrow())
    assert {row["project"] for row in report["endpoints"]} == {f"p{number}" for number in range(12)}
    assert report["total"]["per_hour"] == sum(row["per_hour"] for row in report["endpoints"])


def test_serverless_has_the_price_of_provisioned_concurrency_and_no_estimate_of_its_requests(deploy):
    deploy("idle", ServerlessConfig={"MemorySizeInMB": 2048, "MaxConcurrency": 5})
    warm = {"MemorySizeInMB": 2048, "MaxConcurrency": 5, "ProvisionedConcurrency": 2}
    deploy("warm", ServerlessConfig=warm)
    report = actual.report(None, billed=False, now=tomorrow())
    rows = {row["endpoint"]: row for row in report["endpoints"]}
    assert rows["idle"]["per_hour"] == 0
    assert rows["warm"]["per_hour"] == Decimal("0.072")  # 2 x 3,600 s x 0.00001
    assert rows["warm"]["on"] == "serverless, 2 GB"
    assert rows["idle"]["note"] == "not estimated: serverless is billed per request"
    assert rows["idle"]["spent"] is None
    assert rows["warm"]["spent"] is None


def test_an_endpoint_without_a_price_is_reported_and_not_free(deploy):
    deploy("pets")
    deploy("large", InstanceType="ml.r5.24xlarge", InitialInstanceCount=1)
    report = actual.report(None, billed=False, now=tomorrow())
    (row,) = (row for row in report["endpoints"] if row["endpoint"] == "large")
    assert row["per_hour"] is None
    assert row["spent"] is None
    assert any("large: there is no price for hosting:ml.r5.24xlarge" in note for note in report["notes"])
    assert report["total"]["per_hour"] > 0
    assert actual.PARTIAL in report["notes"]


# --- the cost so far is estimated only if nothing has changed


def endpoint(**changes: object) -> dict:
    """DescribeEndpoint's answer for 2 x ml.m5.large, created on CREATED and never changed."""
    variant = {"VariantName": "AllTraffic", "CurrentInstanceCount": 2}
    return {
        "EndpointName": "pets",
        "EndpointArn": "arn:aws:sagemaker:us-east-1:123456789012:endpoint/pets",
        "EndpointStatus": "InService",
        "CreationTime": CREATED,
        "LastModifiedTime": CREATED + timedelta(minutes=9),  # when the creation was complete
        "ProductionVariants": [variant],
    } | changes


def describe(endpoint: dict, tags: dict | None = None, limits: dict | None = None, **config: object) -> dict:
    config = {
        "CreationTime": CREATED - timedelta(seconds=1),
        "ProductionVariants": [{"VariantName": "AllTraffic"} | INSTANCES],
    } | config
    now = CREATED + timedelta(hours=100)
    return actual.describe(
        endpoint, config, {actual.TAG: "pets"} | (tags or {}), {} if limits is None else limits, now
    )


@pytest.mark.parametrize("limits", [{}, {"endpoint/pets/variant/AllTraffic": (2, 2)}], ids=["none", "2 to 2"])
def test_what_an_unchanged_endpoint_has_cost_is_its_age_times_its_price(limits):
    row = describe(endpoint(), limits=limits)
    assert row["spent"] == pytest.approx(100 * row["per_hour"])
    assert row["not_estimated"] is None
    assert row["note"] == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"endpoint": endpoint(EndpointStatus="Creating")}, "it is Creating"),
        ({"endpoint": endpoint(EndpointStatus="Updating")}, "it is Updating"),
        (
            {"limits": {"endpoint/pets/variant/AllTraffic": (1, 4)}},
            "autoscaling changes the number of instances",
        ),
        (
            {"CreationTime": CREATED + timedelta(minutes=30)},
            "its configuration was changed after its creation",
        ),
        ({"tags": {actual.PREVIOUS: "pets-1"}}, "its configuration was changed after its creation"),
        (
            {
                "endpoint": endpoint(
                    ProductionVariants=[{"VariantName": "AllTraffic", "CurrentInstanceCount": 3}]
                )
            },
            "its number of instances was changed after its creation",
        ),
        (
            {"endpoint": endpoint(LastModifiedTime=CREATED + timedelta(hours=3))},
            "it was changed after its creation",
        ),
    ],
    ids=[
        "creating",
        "updating",
        "scaled",
        "a new configuration",
        "a rollback",
        "a new count",
        "changed back",
    ],
)
def test_what_a_changed_endpoint_has_cost_is_not_estimated(changes, reason):
    changes = {"endpoint": endpoint()} | changes
    row = describe(changes.pop("endpoint"), **changes)
    assert row["per_hour"] > 0
    assert (row["spent"], row["month_end"]) == (None, None)
    assert row["not_estimated"] == reason
    assert row["note"] == f"not estimated: {reason}"


def test_without_the_permission_to_read_autoscaling_nothing_is_estimated():
    config = {"CreationTime": CREATED, "ProductionVariants": [{"VariantName": "AllTraffic"} | INSTANCES]}
    reason = actual.why_not_estimated(endpoint(), config, {}, None)
    assert reason == "your AWS identity may not application-autoscaling:DescribeScalableTargets"


def test_autoscaling_is_read_from_the_account(deploy, client):
    deploy("pets")
    client("application-autoscaling").register_scalable_target(
        ServiceNamespace="sagemaker",
        ResourceId="endpoint/pets/variant/AllTraffic",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
        MinCapacity=1,
        MaxCapacity=4,
    )
    report = actual.report(None, billed=False, now=tomorrow())
    assert report["endpoints"][0]["spent"] is None
    assert "pets: not estimated: autoscaling changes the number of instances" in report["notes"]
    assert report["total"]["spent"] is None


def test_a_failed_endpoint_is_not_billed_now():
    row = describe(endpoint(EndpointStatus="Failed"))
    assert row["per_hour"] == 0
    assert row["spent"] is None
    assert row["note"] == "no instance is billed while it is Failed; not estimated: it is Failed"


# --- Cost Explorer


def groups(amounts: dict[str, str]) -> dict:
    found = [
        {"Keys": [f"{actual.TAG}${project}"], "Metrics": {"UnblendedCost": {"Amount": usd, "Unit": "USD"}}}
        for project, usd in amounts.items()
    ]
    period = {"Start": "2026-11-01", "End": "2026-11-23"}
    return {"ResultsByTime": [{"TimePeriod": period, "Total": {}, "Groups": found, "Estimated": True}]}


def set_bill(aws: str, amounts: dict[str, str]) -> None:
    results = {"results": [groups(amounts)]}
    requests.post(f"{aws}/moto-api/static/ce/cost-and-usage-results", json=results, timeout=10)


@pytest.mark.parametrize(
    ("amounts", "billed", "note"),
    [
        ({"": "7.50", "pets": "12.3456789"}, Decimal("12.3456789"), "by Cost Explorer, 20"),
        ({"": "7.50"}, None, "activate it under Billing"),
    ],
    ids=["the tag is activated", "it is not"],
)
def test_the_bill_of_cost_explorer_is_reported_beside_the_estimate(aws, deploy, amounts, billed, note):
    deploy("pets")
    set_bill(aws, amounts)
    report = actual.report(None, billed=True, now=tomorrow())
    assert report["endpoints"][0]["billed"] == billed
    assert any(note in line for line in report["notes"])


def test_cost_explorer_is_queried_only_with_billed(aws, deploy):
    deploy("pets")
    set_bill(aws, {"pets": "1"})
    report = actual.report(None, billed=False)
    assert report["endpoints"][0]["billed"] is None
    assert any("--billed queries Cost Explorer, which charges $0.01" in note for note in report["notes"])


# --- the command line


def test_the_table_and_json_agree(deploy, run, report):
    deploy("pets")
    table = run("--actual")
    assert table.returncode == 0, table.stderr
    (row,) = report("--actual")["endpoints"]
    (line,) = (line for line in table.stdout.splitlines() if line.startswith("  pets "))
    assert f"${row['per_hour']:.3f}" in line
    assert "2 x ml.m5.large" in line
    assert "estimate" in table.stdout


def test_an_account_without_endpoints_is_reported(aws, run):
    done = run("--actual")
    assert done.returncode == 0
    assert f"no endpoint in {REGION} has the tag {actual.TAG}" in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_DEFAULT_REGION": None}, "no AWS region is set"),
        ({"AWS_ACCESS_KEY_ID": None}, "no AWS credentials were found"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the request to AWS failed"),
    ],
    ids=["no region", "no credentials", "no AWS"],
)
def test_without_an_account_one_sentence_and_exit_code_3(aws, run, monkeypatch, changes, message):
    for key, value in changes.items():
        monkeypatch.delenv(key) if value is None else monkeypatch.setenv(key, value)
    done = run("--actual")
    assert done.returncode == 3
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert message in sentence


def test_the_tags_are_the_ones_that_deploy_writes():
    files = list((ROOT / "deploy").rglob("names.py"))
    if not files:
        pytest.skip("deploy/ is not here")
    text = files[0].read_text()
    (owner,) = re.findall(r'^OWNER = "(.+)"$', text, re.MULTILINE)
    for name, tag in (("PROJECT", actual.TAG), ("PREVIOUS", actual.PREVIOUS)):
        assert re.findall(rf'^{name}(?:_TAG)? = f"\{{OWNER\}}(:\w+)"', text, re.MULTILINE) == [
            tag.removeprefix(owner)
        ]
