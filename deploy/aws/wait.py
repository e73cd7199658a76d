"""Waiting for AWS, and saying what it does: one line that lives on a terminal, plain lines elsewhere."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from aws.client import Aws, AwsError, is_denied, none_if_missing
from common import CommandError, terminal_safe

IN_TRANSITION = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
PAUSES = (0.5, 1, 2, 4, 8)  # seconds between looks; then the last one for ever
CONSISTENT_SECONDS = 30  # seconds after which AWS knows of what it has just been told
LIMIT = 90 * 60  # seconds; SageMaker itself gives up long before
MAX_FAILURES = 8  # looks in a row that may go wrong before the watch is given up
STEPS = {
    "Creating": "an instance is prepared, the image and the archive are fetched, the container starts",
    "Updating": "new instances start beside the old ones, which go on answering",
    "ActivatingTraffic": "the new instances take over",
    "Baking": "the new instances are under watch, the old ones ready to take over again",
    "RollingBack": "the old instances take over again",
    "Deleting": "the instances are given back",
    "InProgress": "an instance is prepared, the pictures go through the model, the answers are written",
}


class UnfinishedError(CommandError):
    """AWS is still at work, and the same command will wait on."""


def wait_until_stable(
    aws: Aws, project: str, expected: str | None = None, usually: str = "", limit: float = LIMIT
) -> dict | None:
    """Wait until the endpoint has done what it is doing: its last description, None when it is gone.

    `expected` is the configuration that was just asked for, which AWS may not know of at once. Raises
    UnfinishedError after `limit` seconds.
    """

    def look() -> dict | None:
        return none_if_missing(aws("sagemaker").describe_endpoint, EndpointName=project)

    seen_moving = False

    def is_over(found: dict | None, seconds: float) -> bool:
        nonlocal seen_moving
        moving = found is not None and found["EndpointStatus"] in IN_TRANSITION
        seen_moving |= moving
        known = not expected or seen_moving or (found and found["EndpointConfigName"] == expected)
        return not moving and bool(known or seconds > CONSISTENT_SECONDS)

    return wait_until(f"endpoint {project}", look, is_over, endpoint_step, usually, limit)


def wait_until(
    what: str,
    look: Callable[[], dict | None],
    is_over: Callable[[dict | None, float], bool],
    step: Callable[[dict], str],
    usually: str = "",
    limit: float = LIMIT,
) -> dict | None:
    """Look again until it is over. Raises UnfinishedError after `limit` seconds, or what stays wrong."""
    start, wrong = time.monotonic(), 0
    with progress_line(what, usually) as tell:
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            seconds = time.monotonic() - start
            try:
                found, wrong = look(), 0
            except AwsError as error:
                wrong += 1
                if wrong == MAX_FAILURES or is_denied(error):
                    raise
                found = {}
            if found != {} and is_over(found, seconds):
                return found
            if seconds > limit:
                text = f"{what} is not ready after {limit / 60:.0f} minutes: the same command waits on"
                raise UnfinishedError(3, text)
            tell(step(found) if found else "")
            time.sleep(pause)
    return None


def endpoint_step(found: dict) -> str:
    """What an endpoint is doing, in words."""
    pending = found.get("PendingDeploymentSummary") or found
    variants = pending.get("ProductionVariants") or []
    said = [status for variant in variants for status in variant.get("VariantStatus", [])]
    status = said[-1]["Status"] if said else found["EndpointStatus"]
    message = said[-1].get("StatusMessage") if said else None
    return f"{found['EndpointStatus']}: {message or STEPS.get(status, status)}"


@contextmanager
def progress_line(what: str, usually: str) -> Iterator[Callable[[str], None]]:
    """A function that says what is happening and for how long."""
    console, start = Console(), time.monotonic()
    said: list[tuple[str, int]] = []

    def line(text: str) -> str:
        seconds = int(time.monotonic() - start)
        passed = f"{seconds // 60}:{seconds % 60:02}{usually and f' (usually {usually})'}"
        return terminal_safe(f"{what}  {passed}  {text}")

    if console.is_terminal:
        with console.status(Text(what)) as status:
            yield lambda text: status.update(Text(line(text)))
        return

    def tell(text: str) -> None:
        now = (text, int(time.monotonic() - start) // 60)
        if text and (not said or said[-1] != now):
            said.append(now)
            print(line(text), flush=True)

    yield tell
