"""What ECR's scan found in an image: waited for, and printed."""

import contextlib
import time

from aws.client import Aws, none_if_missing
from aws.names import image_name
from aws.wait import wait_until
from common import CommandError

SEVERITIES = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFORMATIONAL", "UNDEFINED")
UNFINISHED = ("IN_PROGRESS", "PENDING")
LATE = 30  # seconds after which a scan on push would have begun
LIMIT = 300  # seconds
SHOWN = 5  # findings
MOST = 1000  # findings in one answer


def wait_for_findings(aws: Aws, project: str, digest: str) -> dict:
    """DescribeImageScanFindings' answer, when the scan is over or LIMIT has passed."""
    ecr, start = aws("ecr"), time.monotonic()
    image = {"repositoryName": image_name(project), "imageId": {"imageDigest": digest}}
    begun: list[str] = []

    def look() -> dict | None:
        found = none_if_missing(ecr.describe_image_scan_findings, **image, maxResults=MOST)
        if found is None and not begun and time.monotonic() - start >= LATE:
            begun.append(digest)
            known = ecr.exceptions
            refusals = (known.LimitExceededException, known.ValidationException)  # begun; or Inspector's task
            with contextlib.suppress(*refusals, known.UnsupportedImageTypeException):
                ecr.start_image_scan(**image)
        return found

    def is_over(found: dict | None, seconds: float) -> bool:
        return seconds > LIMIT or (found is not None and status(found) not in UNFINISHED)

    return wait_until("scan", look, is_over, status, "a minute") or {}


def status(found: dict) -> str:
    """What the scan is doing."""
    return found.get("imageScanStatus", {}).get("status", "PENDING")


def print_findings(found: dict) -> None:
    """Print how many findings of each severity there are, and the worst."""
    if not is_done(found):
        said = found.get("imageScanStatus", {}).get("description") or "ECR gives no reason"
        print(f"scan: {status(found)}, so nothing is known of the image: {said}")
        return
    many = counts(found)
    known = [*SEVERITIES, *sorted(set(many) - set(SEVERITIES))]
    print("scan: " + (", ".join(f"{many[key]} {key}" for key in known if key in many) or "no findings"))
    for severity, name, package in worst(found)[:SHOWN]:
        print(f"  {severity:13} {name:18} {package}")
    if sum(many.values()) > SHOWN:
        print(f"  ... and {sum(many.values()) - SHOWN} more, in ECR's console")


def is_done(found: dict) -> bool:
    """Whether the scan says something; a continuous one (Inspector's) is ACTIVE."""
    return status(found) in ("COMPLETE", "ACTIVE")


def counts(found: dict) -> dict[str, int]:
    """How many findings each severity has; none that has none."""
    many = found.get("imageScanFindings", {}).get("findingSeverityCounts", {})
    return {key: number for key, number in many.items() if number}


def worst(found: dict) -> list[tuple[str, str, str]]:
    """Severity, name and package of every finding, the worst first; of ECR's own scan, or of Inspector's."""
    rows, said_of = [], found.get("imageScanFindings", {})
    for one in said_of.get("findings", []):
        said = {pair["key"]: pair.get("value", "") for pair in one.get("attributes", [])}
        package = f"{said.get('package_name', '')} {said.get('package_version', '')}".strip()
        rows.append((one.get("severity", "UNDEFINED"), one.get("name", "?"), package))
    for one in said_of.get("enhancedFindings", []):
        details = one.get("packageVulnerabilityDetails", {})
        parts = details.get("vulnerablePackages", [])
        names = ", ".join(f"{each.get('name')} {each.get('version')}" for each in parts[:2])
        title = details.get("vulnerabilityId") or one.get("title", "?")
        rows.append((one.get("severity", "UNDEFINED"), title, names))
    order = {severity: number for number, severity in enumerate(SEVERITIES)}
    return sorted(rows, key=lambda row: (order.get(row[0], len(order)), row[1]))


def check_findings(found: dict, least: str | None) -> None:
    """Raises Stop for findings of severity `least` (critical, high) or worse, or if nothing is known."""
    if not least:
        return
    if not is_done(found):
        raise CommandError(
            1, f"the scan is {status(found)}, and --fail-on wants to know: repeat the command later"
        )
    bad = SEVERITIES[: SEVERITIES.index(least.upper()) + 1]
    if many := sum(counts(found).get(severity, 0) for severity in bad):
        text = f"the image has {many} findings that are {' or '.join(bad)}"
        raise CommandError(1, f"{text}: renew serve/Dockerfile and serve/requirements.lock, or accept them")
