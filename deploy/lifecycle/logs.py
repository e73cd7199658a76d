"""The verb `logs`: what an endpoint's containers write, all instances merged by time, in colour."""

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
PAUSE = 3  # seconds between two requests; FilterLogEvents allows few per second in the whole account
LATE = 60_000  # milliseconds by which a line may reach CloudWatch after a newer one


def show(aws: Aws, project: str, since: int, *, follow: bool) -> int:
    """Print the last `since` seconds, and with `follow` new lines until Ctrl-C; returns the exit code."""
    console = Console(soft_wrap=True, highlight=False)
    after = int((time.time() - since) * 1000)
    printed: dict[str, int] = {}  # an event's id, and its time
    print_note(f"the log of {project} in {aws.region}; times are UTC")
    last_note = ""
    while True:
        note = print_new(aws, project, after, printed, console, follow=follow)
        if not follow:
            break
        if not printed and not note:
            note = f"waiting for {project} to write something; stop with Ctrl-C"
        if note and note != last_note:
            print_note(note)
        last_note = note
        after = max([after, *(at - LATE for at in printed.values())])
        for key in [key for key, at in printed.items() if at < after]:
            del printed[key]
        time.sleep(PAUSE)
    if not printed:
        print(f"{project} has written nothing in this time; --since 1d shows more")
    return 0 if printed else 1


def print_new(
    aws: Aws, project: str, after: int, printed: dict[str, int], console: Console, *, follow: bool
) -> str:
    """Print the events that are not in `printed` and add them; with `follow`, returns a transient error."""
    try:
        for event in read_events(aws, project, after):
            if event["eventId"] not in printed:
                printed[event["eventId"]] = event["timestamp"]
                console.print(format_event(event))
    except AwsError as error:
        if not follow or not is_transient(error):
            raise
        return f"note: {as_command_error(error)}; retrying"
    return ""


def print_note(text: str) -> None:
    """Print to stderr, because stdout may be redirected into a file."""
    print(text, file=sys.stderr, flush=True)


def read_events(aws: Aws, project: str, after: int) -> Iterator[dict]:
    """Log events since `after` (milliseconds since 1970), each page by time; none without a log group."""
    pages = aws("logs").get_paginator("filter_log_events")
    try:
        for page in pages.paginate(logGroupName=log_group(project), startTime=after):
            yield from sorted(page["events"], key=lambda event: event["timestamp"])
    except ClientError as error:
        if not is_missing(error):
            raise


def format_event(event: dict) -> Text:
    """Time, instance and message; an instance always has the same colour."""
    stream = event["logStreamName"]  # AllTraffic/i-0123456789abcdef0, or the same with /data-log
    instance = terminal_safe((stream.split("/")[1:] or [stream])[0])
    colour = COLOURS[zlib.crc32(instance.encode()) % len(COLOURS)]
    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
    text = Text(f"{at:%m-%d %H:%M:%S} ", "dim")
    text.append(f"{instance[-12:]} ", colour)
    return text.append(terminal_safe(event["message"]).rstrip().replace("\n", "\n  "))
