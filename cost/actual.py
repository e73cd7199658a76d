"""What runs now: this tool's endpoints in the account, what each has cost and will have by the month's end.

Estimates are today's price times the hours, as if there always had been as many instances as now. What AWS
has billed comes from Cost Explorer, by the tag, if that may be asked.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from bill import decimal
from prices import Book, CostError, instances, load

TAG = "fastai-sagemaker:project"  # what deploy puts on everything that it makes
GONE = ("Failed", "Deleting", "OutOfService")  # states in which no instance is paid
HOURS = Decimal(744)  # over which the price of a volume, a month's, is spread
CONFIG = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 3})
ASKED = "billed: not asked; --billed asks Cost Explorer, which takes $0.01 for it"
ESTIMATE = "so far, and this month to its end: estimates, today's price times the hours at today's size"


def report(region: str | None, billed: bool, now: datetime | None = None) -> dict:
    """Every endpoint with the tag. Raises CostError."""
    now = now or datetime.now(UTC)
    session = boto3.Session(region_name=region)
    try:
        rows = [describe(*found, now) for found in ours(session.client("sagemaker", config=CONFIG))]
        bills, note = ask_billed(session, now) if billed else ({}, ASKED)
    except (NoCredentialsError, NoRegionError) as error:
        what = "region is set" if isinstance(error, NoRegionError) else "credentials were found"
        raise CostError(f"no AWS {what}: run `aws configure`, and give --region for another", 3) from None
    except (BotoCoreError, ClientError) as error:
        raise CostError(f"AWS did not answer as asked ({error}): nothing was read", 3) from None
    for row in rows:
        row["billed"] = bills.get(row["project"])
    keys = ("per_hour", "spent", "month_end", "billed")
    notes = [ESTIMATE, note, *(f"{row['endpoint']}: {row['note']}" for row in rows if row["note"])]
    return {
        "region": session.region_name,
        "currency": "USD",
        "endpoints": rows,
        "total": {key: add(row[key] for row in rows) for key in keys},
        "notes": notes if rows else [f"no endpoint in {session.region_name} has the tag {TAG}"],
    }


def ours(sagemaker: object) -> Iterator[tuple[dict, dict, str]]:
    """Each endpoint with our tag: its description, its configuration's, and the project."""
    for page in sagemaker.get_paginator("list_endpoints").paginate():
        for summary in page["Endpoints"]:
            pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=summary["EndpointArn"])
            tags = {tag["Key"]: tag["Value"] for found in pages for tag in found["Tags"]}
            if TAG in tags:
                endpoint = sagemaker.describe_endpoint(EndpointName=summary["EndpointName"])
                name = endpoint["EndpointConfigName"]
                yield endpoint, sagemaker.describe_endpoint_config(EndpointConfigName=name), tags[TAG]


def describe(endpoint: dict, config: dict, project: str, now: datetime) -> dict:
    """One endpoint in numbers. What has no price here is None, and the note says so."""
    created = endpoint["CreationTime"].astimezone(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = (month + timedelta(days=32)).replace(day=1)
    current = {variant["VariantName"]: variant for variant in endpoint.get("ProductionVariants", [])}
    variants = [
        (variant, current.get(variant["VariantName"], {})) for variant in config["ProductionVariants"]
    ]
    notes = ["answers are charged besides, by use"] if "ServerlessConfig" in variants[0][0] else []
    try:
        per_hour = sum((hourly(*pair, load(region_of(endpoint))) for pair in variants), Decimal(0))
    except CostError as error:
        per_hour = None
        notes.append(str(error))
    if endpoint["EndpointStatus"] in GONE:
        per_hour = Decimal(0)
        notes.append(
            f"it is {endpoint['EndpointStatus']}, and no instance is paid; what it has cost is not known"
        )
    age = hours(now - created)
    gone = endpoint["EndpointStatus"] in GONE
    return {
        "endpoint": endpoint["EndpointName"],
        "project": project,
        "state": endpoint["EndpointStatus"],
        "on": ", ".join(name(*pair) for pair in variants),
        "created": created.isoformat(timespec="seconds"),
        "age_hours": age,
        "per_hour": per_hour,
        "spent": None if per_hour is None or gone else per_hour * age,
        "month_end": None if per_hour is None or gone else per_hour * hours(after - max(month, created)),
        "note": "; ".join(notes),
    }


def hourly(variant: dict, now: dict, book: Book) -> Decimal:
    """USD an hour of one variant as it is now. Raises CostError when there is no price."""
    if "ServerlessConfig" in variant:
        serverless = now.get("CurrentServerlessConfig") or variant["ServerlessConfig"]
        size = serverless["MemorySizeInMB"] // 1024
        price = book.find(f"serverless:provisioned-concurrency-usage:{size}GB").price
        return serverless.get("ProvisionedConcurrency", 0) * 3600 * price
    kind = variant["InstanceType"]
    price = book.find(f"hosting:{kind}").price
    volume = instances()[kind].volume if kind in instances() else 0
    if volume or variant.get("VolumeSizeInGB"):
        price += variant.get("VolumeSizeInGB", volume) * book.find("hosting:ebs-gp2").price / HOURS
    return count(variant, now) * price


def name(variant: dict, now: dict) -> str:
    """What a variant runs on, in words."""
    if "ServerlessConfig" in variant:
        return f"serverless, {variant['ServerlessConfig']['MemorySizeInMB'] // 1024} GB"
    return f"{count(variant, now)} x {variant['InstanceType']}"


def count(variant: dict, now: dict) -> int:
    """Instances now; while it is being created, those it will have."""
    return now.get("CurrentInstanceCount", variant.get("InitialInstanceCount", 1))


def ask_billed(session: boto3.Session, now: datetime) -> tuple[dict[str, Decimal], str]:
    """USD that Cost Explorer has for each project this month, and a sentence; it costs $0.01."""
    explorer = session.client("ce", region_name="us-east-1", config=CONFIG)
    period = {"Start": f"{now:%Y-%m}-01", "End": f"{now + timedelta(days=1):%Y-%m-%d}"}
    try:
        answer = explorer.get_cost_and_usage(
            TimePeriod=period,
            Granularity="MONTHLY",
            Metrics=["UnblendedCost"],
            Filter={"Dimensions": {"Key": "SERVICE", "Values": ["Amazon SageMaker"]}},
            GroupBy=[{"Type": "TAG", "Key": TAG}],
        )
    except ClientError as error:
        code = error.response["Error"]["Code"]
        return {}, f"billed: Cost Explorer said {code}; it wants the permission ce:GetCostAndUsage"
    bills: dict[str, Decimal] = {}
    for group in (group for part in answer["ResultsByTime"] for group in part["Groups"]):
        project = group["Keys"][0].removeprefix(f"{TAG}$")
        cost = group["Metrics"]["UnblendedCost"]
        if project and cost["Unit"] == "USD":
            bills[project] = bills.get(project, Decimal(0)) + Decimal(cost["Amount"])
    if not bills:
        return {}, f"billed: nothing has the tag {TAG}; activate it under Billing, Cost allocation tags"
    return bills, f"billed: by Cost Explorer, {period['Start']} until now, up to a day late"


def add(values: Iterator[Decimal | None]) -> Decimal | None:
    """The sum of those that are known; None of none."""
    known = [value for value in values if value is not None]
    return sum(known, Decimal(0)) if known else None


def region_of(endpoint: dict) -> str:
    """The region in an endpoint's ARN."""
    return endpoint["EndpointArn"].split(":")[3]


def hours(time: timedelta) -> Decimal:
    """Hours, never less than none."""
    return max(Decimal(0), decimal(time.total_seconds() / 3600))
