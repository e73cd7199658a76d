"""What runs in an account: moto's server stands in for AWS, and boto3 speaks to it over HTTP."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import boto3
import pytest
import requests
from test_cost import run

import actual
import moto_process

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/any"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION}
INSTANCES = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 2, "VolumeSizeInGB": 10}


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """An empty account, and the environment that leads to it."""
    moto = moto_process.empty().fork()
    for key, value in (KEYS | {"AWS_ENDPOINT_URL": moto.url, "XDG_CACHE_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(key, value)
    yield moto.url
    moto.close()


def deploy(name: str, project: str | None = "pets", **variant: object) -> None:
    """An endpoint as deploy makes it: three calls, with our tag or without."""
    sagemaker = boto3.client("sagemaker")
    tags = [{"Key": "owner", "Value": "me"}] + [{"Key": actual.TAG, "Value": project}] * bool(project)
    image = {"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/ray:1"}
    sagemaker.create_model(ModelName=name, PrimaryContainer=image, ExecutionRoleArn=ROLE, Tags=tags)
    variant = {"VariantName": "AllTraffic", "ModelName": name, **(variant or INSTANCES)}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=tags)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)


def tomorrow() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)


def test_ours_are_found_by_their_tag_with_price_age_and_the_months_end(aws):
    deploy("pets")
    deploy("somebody-elses", project=None)
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
    assert report["total"]["per_hour"] == row["per_hour"]


def test_more_endpoints_than_a_page_are_all_found_and_added(aws):
    for number in range(12):
        deploy(f"pets-{number}", project=f"p{number}")
    report = actual.report(None, billed=False, now=tomorrow())
    assert {row["project"] for row in report["endpoints"]} == {f"p{number}" for number in range(12)}
    assert report["total"]["per_hour"] == sum(row["per_hour"] for row in report["endpoints"])


def test_serverless_costs_by_use_besides_what_is_kept_ready(aws):
    deploy("idle", ServerlessConfig={"MemorySizeInMB": 2048, "MaxConcurrency": 5})
    kept = {"MemorySizeInMB": 2048, "MaxConcurrency": 5, "ProvisionedConcurrency": 2}
    deploy("kept", ServerlessConfig=kept)
    rows = {row["endpoint"]: row for row in actual.report(None, False, tomorrow())["endpoints"]}
    assert rows["idle"]["per_hour"] == 0
    assert rows["kept"]["per_hour"] == Decimal("0.072")  # 2 x 3,600 s x 0.00001
    assert rows["kept"]["on"] == "serverless, 2 GB"
    assert "by use" in rows["idle"]["note"]


def test_what_has_no_price_here_is_said_and_not_nothing(aws):
    deploy("pets")
    deploy("large", InstanceType="ml.r5.24xlarge", InitialInstanceCount=1)
    report = actual.report(None, False, tomorrow())
    (row,) = (row for row in report["endpoints"] if row["endpoint"] == "large")
    assert row["per_hour"] is None
    assert row["spent"] is None
    assert any("large: there is no price for hosting:ml.r5.24xlarge" in note for note in report["notes"])
    assert report["total"]["per_hour"] > 0


def test_a_failed_endpoint_costs_nothing_now():
    endpoint = {"EndpointName": "pets", "EndpointStatus": "Failed", "CreationTime": datetime.now(UTC)}
    endpoint["EndpointArn"] = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/pets"
    config = {"ProductionVariants": [{"VariantName": "A"} | INSTANCES]}
    row = actual.describe(endpoint, config, "pets", tomorrow())
    assert row["per_hour"] == 0
    assert row["spent"] is None
    assert "Failed" in row["note"]


def groups(amounts: dict[str, str]) -> dict:
    found = [
        {"Keys": [f"{actual.TAG}${project}"], "Metrics": {"UnblendedCost": {"Amount": usd, "Unit": "USD"}}}
        for project, usd in amounts.items()
    ]
    period = {"Start": "2026-11-01", "End": "2026-11-23"}
    return {"ResultsByTime": [{"TimePeriod": period, "Total": {}, "Groups": found, "Estimated": True}]}


@pytest.mark.parametrize(
    ("amounts", "billed", "says"),
    [
        ({"": "7.50", "pets": "12.3456789"}, Decimal("12.3456789"), "by Cost Explorer, 20"),
        ({"": "7.50"}, None, "activate it under Billing"),
    ],
    ids=["the tag is activated", "it is not"],
)
def test_what_cost_explorer_says_stands_beside_the_estimate(aws, amounts, billed, says):
    deploy("pets")
    results = {"results": [groups(amounts)]}
    requests.post(f"{aws}/moto-api/static/ce/cost-and-usage-results", json=results, timeout=10)
    report = actual.report(None, billed=True, now=tomorrow())
    assert report["endpoints"][0]["billed"] == billed
    assert any(says in note for note in report["notes"])


def test_cost_explorer_is_not_asked_unless_it_is_wanted(aws):
    deploy("pets")
    results = {"results": [groups({"pets": "1"})]}
    requests.post(f"{aws}/moto-api/static/ce/cost-and-usage-results", json=results, timeout=10)
    report = actual.report(None, billed=False)
    assert report["endpoints"][0]["billed"] is None
    assert any("--billed asks Cost Explorer, which takes $0.01" in note for note in report["notes"])


def environment(aws, tmp_path) -> dict[str, str]:
    return KEYS | {"AWS_ENDPOINT_URL": aws, "XDG_CACHE_HOME": str(tmp_path)}


def test_the_table_and_json_agree(aws, tmp_path):
    deploy("pets")
    found = environment(aws, tmp_path)
    table = run("--actual", **found)
    assert table.returncode == 0, table.stderr
    (row,) = json.loads(run("--actual", "--json", **found).stdout)["endpoints"]
    (line,) = (line for line in table.stdout.splitlines() if line.startswith("  pets "))
    assert f"${row['per_hour']:.3f}" in line
    assert "2 x ml.m5.large" in line
    assert "estimate" in table.stdout


def test_an_account_without_any_says_so(aws, tmp_path):
    done = run("--actual", **environment(aws, tmp_path))
    assert done.returncode == 0
    assert f"no endpoint in {REGION} has the tag {actual.TAG}" in done.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"AWS_DEFAULT_REGION": ""}, "no AWS region is set"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "no AWS credentials were found"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS did not answer as asked"),
    ],
    ids=["no region", "no credentials", "no AWS"],
)
def test_no_account_is_a_sentence_and_exit_code_3(aws, tmp_path, changes, says):
    found = {key: value for key, value in (environment(aws, tmp_path) | changes).items() if value}
    done = run("--actual", **found)
    assert done.returncode == 3
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert says in sentence


def test_deploys_tag_is_the_one_that_is_looked_for():
    from aws.names import PROJECT_TAG

    assert PROJECT_TAG == actual.TAG
