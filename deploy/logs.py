"""What an endpoint's containers write: every instance's stream, merged in order of time and coloured."""

import time
import zlib
from datetime import UTC, datetime

from botocore.exceptions import ClientError
from rich.console import Console
from rich.text import Text

from aws import Aws, is_missing, pages
from names import log_group

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red")
PAUSE = 3  # seconds between two looks; CloudWatch allows few a second to the whole account
LATE = 60_000  # milliseconds that a line may come to CloudWatch after a younger one


def show(aws: Aws, project: str, since: int, follow: bool) -> int:
    """Print the lines of the last `since` seconds, and with `follow` those to come; the exit code."""
    console = Console(soft_wrap=True, highlight=False)
    after = int((time.time() - since) * 1000)
    shown: dict[str, int] = {}  # an event's id, and when it was
    while True:
        for event in events(aws, project, after):
            if event["eventId"] not in shown:
                shown[event["eventId"]] = event["timestamp"]
                console.print(line(event))
        if not follow:
            break
        after = max([after, *(at - LATE for at in shown.values())])
        shown = {key: at for key, at in shown.items() if at >= after}
        time.sleep(PAUSE)
    if not shown:
        print(f"{project} has written nothing in this time; --since 1d looks further back")
    return 0 if shown else 1


def events(aws: Aws, project: str, after: int) -> list[dict]:
    """Log events from `after` (milliseconds since 1970) on, oldest first; none while there is no log."""
    try:
        request = {"logGroupName": log_group(project), "startTime": after}
        found = pages(aws("logs"), "filter_log_events", "events", **request)
    except ClientError as error:
        if is_missing(error):
            return []
        raise
    return sorted(found, key=lambda event: event["timestamp"])


def line(event: dict) -> Text:
    """Time, instance, message; an instance keeps its colour."""
    stream = event["logStreamName"]
    colour = COLOURS[zlib.crc32(stream.encode()) % len(COLOURS)]
    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
    text = Text(f"{at:%m-%d %H:%M:%S} ", "dim")
    text.append(f"{stream.rpartition('/')[2][-12:]} ", colour)
    return text.append(event["message"].rstrip())
