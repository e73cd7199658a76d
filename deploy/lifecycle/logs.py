"""What an endpoint's containers write: every instance's stream, merged in order of time and coloured."""

import sys
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime

from botocore.exceptions import ClientError
from rich.console import Console
from rich.text import Text

from aws.client import Aws, AwsError, as_command_error, is_missing, is_transient
from aws.names import log_group
from common import terminal_safe

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red")
PAUSE = 3  # seconds between two looks; CloudWatch allows few a second to the whole account
LATE = 60_000  # milliseconds that a line may come to CloudWatch after a younger one


def show(aws: Aws, project: str, since: int, follow: bool) -> int:
    """Print the lines of the last `since` seconds, and with `follow` those to come; the exit code."""
    console = Console(soft_wrap=True, highlight=False)
    after = int((time.time() - since) * 1000)
    shown: dict[str, int] = {}  # an event's id, and when it was
    print_note(f"the log of {project} in {aws.region}; times are UTC")
    said = ""
    while True:
        trouble = print_new(aws, project, after, shown, console, follow)
        if not follow:
            break
        if not shown and not trouble:
            trouble = f"waiting for {project} to write something; Ctrl-C ends this"
        if trouble and trouble != said:
            print_note(trouble)
        said = trouble
        after = max([after, *(at - LATE for at in shown.values())])
        for key in [key for key, at in shown.items() if at < after]:
            del shown[key]
        time.sleep(PAUSE)
    if not shown:
        print(f"{project} has written nothing in this time; --since 1d looks further back")
    return 0 if shown else 1


def print_new(
    aws: Aws, project: str, after: int, shown: dict[str, int], console: Console, follow: bool
) -> str:
    """Print what is not among `shown` and add it there; with `follow`, what went wrong and will pass."""
    try:
        for event in read_events(aws, project, after):
            if event["eventId"] not in shown:
                shown[event["eventId"]] = event["timestamp"]
                console.print(format_event(event))
    except AwsError as error:
        if not follow or not is_transient(error):
            raise
        return f"note: {as_command_error(error)}; this goes on by itself"
    return ""


def print_note(text: str) -> None:
    """To the user and not into the log, which may be on its way to a file."""
    print(text, file=sys.stderr, flush=True)


def read_events(aws: Aws, project: str, after: int) -> Iterator[dict]:
    """Log events from `after` (milliseconds since 1970) on, the oldest first, as the pages come."""
    pages = aws("logs").get_paginator("filter_log_events")
    try:
        for page in pages.paginate(logGroupName=log_group(project), startTime=after):
            yield from sorted(page["events"], key=lambda event: event["timestamp"])
    except ClientError as error:
        if not is_missing(error):
            raise


def format_event(event: dict) -> Text:
    """Time, instance, message; an instance keeps its colour."""
    stream = event["logStreamName"]  # AllTraffic/i-0123456789abcdef0, or that and /data-log
    instance = terminal_safe((stream.split("/")[1:] or [stream])[0])
    colour = COLOURS[zlib.crc32(instance.encode()) % len(COLOURS)]
    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
    text = Text(f"{at:%m-%d %H:%M:%S} ", "dim")
    text.append(f"{instance[-12:]} ", colour)
    return text.append(terminal_safe(event["message"]).rstrip().replace("\n", "\n  "))
