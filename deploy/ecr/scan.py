"""ECR's vulnerability scan of an image: wait for it, print it, and fail on severe findings."""

import contextlib
import time

from aws.client import Aws, none_if_missing
from aws.names import image_name
from aws.wait import wait_until
from common import CommandError

SEVERITIES = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFORMATIONAL", "UNDEFINED")
UNFINISHED = ("IN_PROGRESS", "PENDING")
LATE = 30  # seconds after which the scan on push has not started by itself
LIMIT = 300  # seconds
SHOWN = 5  # findings
MOST = 1000  # findings in one response, ECR's maximum


def wait_for_findings(aws: Aws, project: str, digest: str) -> dict:
    """DescribeImageScanFindings' response, when the scan is over or LIMIT has passed."""
    ecr, start = aws("ecr"), time.monotonic()
    image = {"repositoryName": image_name(project), "imageId": {"imageDigest": digest}}
    was_started = False

    def describe() -> dict | None:
        nonlocal was_started
        response = none_if_missing(ecr.describe_image_scan_findings, **image, maxResults=MOST)
        if response is None and not was_started and time.monotonic() - start >= LATE:
            was_started = True
            errors = ecr.exceptions
            # LimitExceeded: one scan a day. Validation: Amazon Inspector scans this registry.
            ignored = (errors.LimitExceededException, errors.ValidationException)
            with contextlib.suppress(*ignored, errors.UnsupportedImageTypeException):
                ecr.start_image_scan(**image)
        return response

    def is_over(response: dict | None, seconds: float) -> bool:
        return seconds > LIMIT or (response is not None and status(response) not in UNFINISHED)

    return wait_until("scan", describe, is_over, status, "a minute") or {}


def status(response: dict) -> str:
    """The scan's status."""
    return response.get("imageScanStatus", {}).get("status", "PENDING")


def print_findings(response: dict) -> None:
    """Print the number of findings of each severity, and the worst findings."""
    if not is_done(response):
        reason = response.get("imageScanStatus", {}).get("description") or "ECR gives no reason"
        print(f"scan: {status(response)}, so nothing is known of the image: {reason}")
        return
    number = counts(response)
    order = [*SEVERITIES, *sorted(set(number) - set(SEVERITIES))]
    print("scan: " + (", ".join(f"{number[key]} {key}" for key in order if key in number) or "no findings"))
    for severity, name, package in worst(response)[:SHOWN]:
        print(f"  {severity:13} {name:18} {package}")
    if sum(number.values()) > SHOWN:
        print(f"  ... and {sum(number.values()) - SHOWN} more, in ECR's console")


def is_done(response: dict) -> bool:
    """Whether the scan has a result; the continuous scan of Amazon Inspector is ACTIVE."""
    return status(response) in ("COMPLETE", "ACTIVE")


def counts(response: dict) -> dict[str, int]:
    """The number of findings of each severity that has any."""
    number = response.get("imageScanFindings", {}).get("findingSeverityCounts", {})
    return {key: count for key, count in number.items() if count}


def worst(response: dict) -> list[tuple[str, str, str]]:
    """Severity, name and package of every finding, the worst first; ECR's own scan, or Inspector's."""
    rows, result = [], response.get("imageScanFindings", {})
    for finding in result.get("findings", []):
        attributes = {pair["key"]: pair.get("value", "") for pair in finding.get("attributes", [])}
        package = f"{attributes.get('package_name', '')} {attributes.get('package_version', '')}".strip()
        rows.append((finding.get("severity", "UNDEFINED"), finding.get("name", "?"), package))
    for finding in result.get("enhancedFindings", []):
        details = finding.get("packageVulnerabilityDetails", {})
        packages = details.get("vulnerablePackages", [])
        names = ", ".join(f"{package.get('name')} {package.get('version')}" for package in packages[:2])
        title = details.get("vulnerabilityId") or finding.get("title", "?")
        rows.append((finding.get("severity", "UNDEFINED"), title, names))
    order = {severity: number for number, severity in enumerate(SEVERITIES)}
    return sorted(rows, key=lambda row: (order.get(row[0], len(order)), row[1]))


def check_findings(response: dict, least: str | None) -> None:
    """Raise CommandError for findings of severity `least` (critical, high) or worse, or without a result."""
    if not least:
        return
    if not is_done(response):
        text = f"the scan is {status(response)}, and --fail-on needs its result"
        raise CommandError(1, f"{text}: run the command again later")
    bad = SEVERITIES[: SEVERITIES.index(least.upper()) + 1]
    if number := sum(counts(response).get(severity, 0) for severity in bad):
        text = f"the image has {number} findings that are {' or '.join(bad)}"
        raise CommandError(1, f"{text}: update serve/Dockerfile and serve/requirements.lock, or accept them")
