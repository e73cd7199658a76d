"""Waiting until AWS has finished, with a progress line (on a terminal) or plain lines."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from aws.client import Aws, AwsError, is_denied, none_if_missing
from common import CommandError, terminal_safe

IN_TRANSITION = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
PAUSES = (0.5, 1, 2, 4, 8)  # seconds between requests; the last one is repeated
CONSISTENT_SECONDS = 30  # after which DescribeEndpoint shows the effect of a request
LIMIT = 90 * 60  # seconds; SageMaker itself gives up long before
MAX_FAILURES = 8  # failed requests in a row
STEPS = {
    "Creating": "an instance is prepared, the image and the archive are downloaded, the container starts",
    "Updating": "new instances start; the old ones still serve",
    "ActivatingTraffic": "traffic moves to the new instances",
    "Baking": "the alarms of the new instances are watched; the old instances are kept for a rollback",
    "RollingBack": "traffic moves back to the old instances",
    "Deleting": "the instances are being released",
    "InProgress": "an instance is prepared, predictions are made, the answers are written",
}


class UnfinishedError(CommandError):
    """AWS has not finished within the time limit; the same command waits on."""


def wait_until_stable(
    aws: Aws, project: str, expected: str | None = None, usually: str = "", limit: float = LIMIT
) -> dict | None:
    """Wait until the endpoint is not in transition: DescribeEndpoint's response, None if it is deleted.

    `expected` is the configuration that was just requested, which DescribeEndpoint may not show at once.
    Raises UnfinishedError after `limit` seconds.
    """

    def describe() -> dict | None:
        return none_if_missing(aws("sagemaker").describe_endpoint, EndpointName=project)

    was_in_transition = False

    def is_over(endpoint: dict | None, seconds: float) -> bool:
        nonlocal was_in_transition
        in_transition = endpoint is not None and endpoint["EndpointStatus"] in IN_TRANSITION
        was_in_transition |= in_transition
        is_expected = endpoint is not None and endpoint["EndpointConfigName"] == expected
        is_visible = not expected or was_in_transition or is_expected
        return not in_transition and (is_visible or seconds > CONSISTENT_SECONDS)

    return wait_until(f"endpoint {project}", describe, is_over, endpoint_step, usually, limit)


def wait_until(
    what: str,
    describe: Callable[[], dict | None],
    is_over: Callable[[dict | None, float], bool],
    step: Callable[[dict], str],
    usually: str = "",
    limit: float = LIMIT,
) -> dict | None:
    """Call `describe` until `is_over` its result after so many seconds; the last result.

    Raises UnfinishedError after `limit` seconds, and AWS's error after MAX_FAILURES in a row.
    """
    start, failures = time.monotonic(), 0
    with progress_line(what, usually) as show:
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            seconds = time.monotonic() - start
            text = ""
            try:
                found = describe()
            except AwsError as error:
                failures += 1
                if failures == MAX_FAILURES or is_denied(error):
                    raise
            else:
                failures = 0
                if is_over(found, seconds):
                    return found
                text = step(found) if found else ""
            if seconds > limit:
                late = f"{what} is not ready after {limit / 60:.0f} minutes"
                raise UnfinishedError(3, f"{late}: the same command waits on")
            show(text)
            time.sleep(pause)
    raise AssertionError  # the pauses never end


def endpoint_step(endpoint: dict) -> str:
    """What an endpoint is doing, from DescribeEndpoint's response."""
    pending = endpoint.get("PendingDeploymentSummary") or endpoint
    variants = pending.get("ProductionVariants") or []
    statuses = [status for variant in variants for status in variant.get("VariantStatus", [])]
    status = statuses[-1]["Status"] if statuses else endpoint["EndpointStatus"]
    message = statuses[-1].get("StatusMessage") if statuses else None
    return f"{endpoint['EndpointStatus']}: {message or STEPS.get(status, status)}"


@contextmanager
def progress_line(what: str, usually: str) -> Iterator[Callable[[str], None]]:
    """A function that shows what is happening and for how long.

    Without a terminal it prints a line only when the text or the minute has changed.
    """
    console, start = Console(), time.monotonic()
    printed: list[tuple[str, int]] = []

    def line(text: str) -> str:
        seconds = int(time.monotonic() - start)
        elapsed = f"{seconds // 60}:{seconds % 60:02}{usually and f' (usually {usually})'}"
        return terminal_safe(f"{what}  {elapsed}  {text}")

    if console.is_terminal:
        with console.status(Text(what)) as status:
            yield lambda text: status.update(Text(line(text)))
        return

    def show(text: str) -> None:
        now = (text, int(time.monotonic() - start) // 60)
        if text and (not printed or printed[-1] != now):
            printed.append(now)
            print(line(text), flush=True)

    yield show
