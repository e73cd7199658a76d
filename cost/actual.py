"""What runs now: this tool's endpoints in the account, the price of each, its cost so far and this month's.

The cost so far is an estimate, today's price times the age. That is right only if the endpoint has had the
same instances since its creation: otherwise it is "not estimated", with the reason. What AWS has billed comes
from Cost Explorer, by the tag, with `--billed`.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from bill import decimal
from prices import CostError, PriceBook, instances, load

TAG = "fastai-sagemaker:project"  # deploy puts it on everything that it creates
PREVIOUS = "fastai-sagemaker:previous"  # deploy puts it on an endpoint that it has updated
NOT_BILLED = ("Failed", "Deleting", "OutOfService")  # states without billed instances
HOURS = Decimal(744)  # of a month, to convert the monthly price of a volume
# LastModifiedTime also changes when the creation is complete. A model's download and a container's start may
# take an hour each (ModelDataDownloadTimeoutInSeconds, ContainerStartupHealthCheckTimeoutInSeconds).
LONGEST_CREATION = timedelta(hours=2)
CONFIG = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 3})
NOT_QUERIED = "billed: not queried; --billed queries Cost Explorer, which charges $0.01"
ESTIMATE = (
    "so far, and this month to its end: estimates, today's price times the hours with today's instances"
)
PARTIAL = "the totals leave out what is not estimated"
Limits = dict[
    str, tuple[int, int]
]  # autoscaling's minimum and maximum by resource, such as endpoint/x/variant/y


def report(region: str | None, *, billed: bool, now: datetime | None = None) -> dict:
    """Every endpoint with the tag. Raises CostError."""
    now = now or datetime.now(UTC)
    session = boto3.Session(region_name=region)
    try:
        found = list(tagged_endpoints(session.client("sagemaker", config=CONFIG)))
        limits = scaling_limits(session) if found else {}
        rows = [describe(*one, limits, now) for one in found]
        bills, note = get_billed(session, now) if billed else ({}, NOT_QUERIED)
    except (NoCredentialsError, NoRegionError) as error:
        missing = "region is set" if isinstance(error, NoRegionError) else "credentials were found"
        raise CostError(f"no AWS {missing}: run `aws configure`, or give --region for a Region", 3) from None
    except (BotoCoreError, ClientError) as error:
        raise CostError(f"the request to AWS failed ({error}): nothing was read", 3) from None
    for row in rows:
        row["billed"] = bills.get(row["project"])
    notes = [ESTIMATE, note, *(f"{row['endpoint']}: {row['note']}" for row in rows if row["note"])]
    if any(row["not_estimated"] for row in rows):
        notes.append(PARTIAL)
    return {
        "region": session.region_name,
        "currency": "USD",
        "endpoints": rows,
        "total": {
            key: sum_known(row[key] for row in rows) for key in ("per_hour", "spent", "month_end", "billed")
        },
        "notes": notes if rows else [f"no endpoint in {session.region_name} has the tag {TAG}"],
    }


def tagged_endpoints(sagemaker: Any) -> Iterator[tuple[dict, dict, dict[str, str]]]:
    """Each endpoint with our tag: its description, its configuration's description, and its tags."""
    for page in sagemaker.get_paginator("list_endpoints").paginate():
        for summary in page["Endpoints"]:
            pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=summary["EndpointArn"])
            tags = {tag["Key"]: tag["Value"] for found in pages for tag in found["Tags"]}
            if TAG in tags:
                endpoint = sagemaker.describe_endpoint(EndpointName=summary["EndpointName"])
                name = endpoint["EndpointConfigName"]
                yield endpoint, sagemaker.describe_endpoint_config(EndpointConfigName=name), tags


def scaling_limits(session: boto3.Session) -> Limits | None:
    """Autoscaling's limits of every variant that has them; None if the permission to read them is missing."""
    client = session.client("application-autoscaling", config=CONFIG)
    pages = client.get_paginator("describe_scalable_targets").paginate(ServiceNamespace="sagemaker")
    try:
        targets = [target for page in pages for target in page["ScalableTargets"]]
    except ClientError as error:
        if "AccessDenied" in error.response["Error"]["Code"]:
            return None
        raise
    return {target["ResourceId"]: (target["MinCapacity"], target["MaxCapacity"]) for target in targets}


def describe(
    endpoint: dict, config: dict, tags: dict[str, str], limits: Limits | None, now: datetime
) -> dict:
    """One endpoint in numbers. Unknown numbers are None; "note" has the reasons."""
    created = endpoint["CreationTime"].astimezone(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    next_month = (month + timedelta(days=32)).replace(day=1)
    variants = pair_variants(endpoint, config)
    notes = []
    try:
        per_hour = sum((price_per_hour(*pair, load(region_of(endpoint))) for pair in variants), Decimal(0))
    except CostError as error:
        per_hour = None
        notes.append(str(error))
    if endpoint["EndpointStatus"] in NOT_BILLED:
        per_hour = Decimal(0)
        notes.append(f"no instance is billed while it is {endpoint['EndpointStatus']}")
    reason = "the price is unknown" if per_hour is None else why_not_estimated(endpoint, config, tags, limits)
    if reason:
        notes.append(f"not estimated: {reason}")
    age = hours(now - created)
    constant = None if reason else per_hour  # since its creation
    return {
        "endpoint": endpoint["EndpointName"],
        "project": tags[TAG],
        "state": endpoint["EndpointStatus"],
        "on": ", ".join(describe_variant(*pair) for pair in variants),
        "created": created.isoformat(timespec="seconds"),
        "age_hours": age,
        "per_hour": per_hour,
        "spent": None if constant is None else constant * age,
        "month_end": None if constant is None else constant * hours(next_month - max(month, created)),
        "not_estimated": reason,
        "note": "; ".join(notes),
    }


def why_not_estimated(
    endpoint: dict, config: dict, tags: dict[str, str], limits: Limits | None
) -> str | None:
    """Why the age times today's price is not what the endpoint has cost; None if it is.

    It is only if neither the configuration nor the number of instances has changed since the creation.
    """
    variants = pair_variants(endpoint, config)
    created = endpoint["CreationTime"]
    resources = [f"endpoint/{endpoint['EndpointName']}/variant/{v['VariantName']}" for v, _ in variants]
    if any("ServerlessConfig" in variant for variant, _ in variants):
        return "serverless is billed per request"
    if endpoint["EndpointStatus"] != "InService":
        return f"it is {endpoint['EndpointStatus']}"
    if limits is None:
        return "your AWS identity may not application-autoscaling:DescribeScalableTargets"
    if any(low != high for low, high in (limits[name] for name in resources if name in limits)):
        return "autoscaling changes the number of instances"
    if config["CreationTime"] > created or PREVIOUS in tags:
        return "its configuration was changed after its creation"
    if any(instance_count(*pair) != pair[0].get("InitialInstanceCount", 1) for pair in variants):
        return "its number of instances was changed after its creation"
    if endpoint["LastModifiedTime"] - created > LONGEST_CREATION:
        return "it was changed after its creation"
    return None


def pair_variants(endpoint: dict, config: dict) -> list[tuple[dict, dict]]:
    """Each variant as configured and as it is now; the latter is empty while the endpoint is created."""
    current = {variant["VariantName"]: variant for variant in endpoint.get("ProductionVariants", [])}
    return [(variant, current.get(variant["VariantName"], {})) for variant in config["ProductionVariants"]]


def price_per_hour(variant: dict, current: dict, book: PriceBook) -> Decimal:
    """USD per hour of one variant as it is now, without charges per request. Raises CostError."""
    if "ServerlessConfig" in variant:
        serverless = current.get("CurrentServerlessConfig") or variant["ServerlessConfig"]
        size = serverless["MemorySizeInMB"] // 1024
        price = book.find(f"serverless:provisioned-concurrency-usage:{size}GB").price
        return serverless.get("ProvisionedConcurrency", 0) * 3600 * price
    kind = variant["InstanceType"]
    price = book.find(f"hosting:{kind}").price
    volume = instances()[kind].volume if kind in instances() else 0
    if volume or variant.get("VolumeSizeInGB"):
        price += variant.get("VolumeSizeInGB", volume) * book.find("hosting:ebs-gp2").price / HOURS
    return instance_count(variant, current) * price


def describe_variant(variant: dict, current: dict) -> str:
    """What a variant runs on, such as "2 x ml.m5.large"."""
    if "ServerlessConfig" in variant:
        return f"serverless, {variant['ServerlessConfig']['MemorySizeInMB'] // 1024} GB"
    return f"{instance_count(variant, current)} x {variant['InstanceType']}"


def instance_count(variant: dict, current: dict) -> int:
    """Instances now; the configured number while the endpoint is created."""
    return current.get("CurrentInstanceCount", variant.get("InitialInstanceCount", 1))


def get_billed(session: boto3.Session, now: datetime) -> tuple[dict[str, Decimal], str]:
    """USD that Cost Explorer has for each project this month, and a sentence about it. Costs $0.01."""
    explorer = session.client("ce", region_name="us-east-1", config=CONFIG)  # its only Region
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
        return {}, f"billed: Cost Explorer answered {code}; you need the permission ce:GetCostAndUsage"
    bills: dict[str, Decimal] = {}
    for group in (group for part in answer["ResultsByTime"] for group in part["Groups"]):
        project = group["Keys"][0].removeprefix(f"{TAG}$")  # AWS returns "key$value"
        cost = group["Metrics"]["UnblendedCost"]
        if project and cost["Unit"] == "USD":
            bills[project] = bills.get(project, Decimal(0)) + Decimal(cost["Amount"])
    if not bills:
        return {}, f"billed: nothing has the tag {TAG}; activate it under Billing, Cost allocation tags"
    return bills, f"billed: by Cost Explorer, {period['Start']} until now, up to a day late"


def sum_known(values: Iterable[Decimal | None]) -> Decimal | None:
    """The sum of the known values; None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known, Decimal(0)) if known else None


def region_of(endpoint: dict) -> str:
    """The Region in an endpoint's ARN."""
    return endpoint["EndpointArn"].split(":")[3]


def hours(time: timedelta) -> Decimal:
    """Hours, at least 0."""
    return max(Decimal(0), decimal(time.total_seconds() / 3600))
