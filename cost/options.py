"""The command line of estimate.py: every value is checked, and an invalid one is named."""

import argparse
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NoReturn

from bill import SERVERLESS_LIMIT

KINDS = ("real-time", "serverless", "async", "batch", "training")
OFFERS = "https://pricing.us-east-1.amazonaws.com"  # AWS's public price list; needs no account


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def parse(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = Parser(description=description)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--example", choices=["guide"], help="fast.ai's guide of 2019, then and now")
    modes.add_argument("--compare", action="store_true", help="every kind and instance, cheapest first")
    modes.add_argument("--simulate", action="store_true", help="a day, request by request")
    modes.add_argument("--hourly", action="store_true", help="fixed cost without traffic, per hour and month")
    modes.add_argument("--refresh", action="store_true", help="read AWS's price list into your own cache")
    modes.add_argument("--actual", action="store_true", help="the endpoints that run in your account")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON and nothing else")
    form.add_argument("--csv", action="store_true", help="print CSV and nothing else")
    add_endpoint(parser)
    add_traffic(parser)
    add_throughput(parser)
    group = parser.add_argument_group("AWS")
    group.add_argument("--without", action="append", metavar="ITEM", help="--refresh leaves this price out")
    group.add_argument("--offers", default=OFFERS, metavar="URL", help="where --refresh reads")
    group.add_argument("--billed", action="store_true", help="--actual queries Cost Explorer too, for $0.01")
    return parser.parse_args(argv)


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Options that describe the endpoint."""
    group = parser.add_argument_group("the endpoint")
    group.add_argument("--kind", default="real-time", choices=KINDS, help="%(default)s")
    group.add_argument("--instance", default="ml.c7i.large", help="%(default)s")
    group.add_argument(
        "--count", type=count, default=1, help="instances; with scaling the minimum (%(default)s)"
    )
    group.add_argument("--memory", type=memory, default="4096", help="MB, serverless (%(default)s)")
    group.add_argument(
        "--provisioned", type=provisioned, default=0, help="serverless: provisioned concurrency"
    )
    group.add_argument("--region", help="us-east-1; for --actual, that of your AWS configuration")
    group.add_argument("--max", type=count, default=0, help="maximum of instances; 0: no scaling")
    group.add_argument("--volume", type=non_negative, help="GB of an instance's disk; default: AWS's")


def add_traffic(parser: argparse.ArgumentParser) -> None:
    """Options that describe the traffic."""
    group = parser.add_argument_group("the traffic")
    group.add_argument("--requests", default="1/min", help="a mean such as 10/s or 5000/day (%(default)s)")
    group.add_argument("--curve", default="constant", help="constant, office, spike, or a .csv of times")
    group.add_argument("--picture", type=non_negative, default=Decimal(100), help="KB (%(default)s)")
    group.add_argument("--answer", type=non_negative, default=Decimal(300), help="bytes (%(default)s)")
    group.add_argument(
        "--logs", type=non_negative, default=Decimal(200), help="bytes per request (%(default)s)"
    )
    group.add_argument("--model", type=non_negative, help="MB; default: the archive's size")
    group.add_argument("--archive", type=Path, help="model.tar.gz, if it is built")
    group.add_argument("--hours", type=positive, default=Decimal(744), help="of a month: 24 x 31, or 730")


def add_throughput(parser: argparse.ArgumentParser) -> None:
    """Options for the throughput, and for what is assumed about AWS."""
    group = parser.add_argument_group("throughput")
    group.add_argument("--bench", type=Path, help="the file that bench/load.py wrote, if it exists")
    group.add_argument("--throughput", type=positive, help="pictures/s of one instance, instead of that file")
    group.add_argument(
        "--target-utilization", type=fraction, default=0.7, help="share of it to plan for (%(default)s)"
    )
    group.add_argument("--limit", type=positive, default=Decimal(1), help="seconds per answer (%(default)s)")
    group.add_argument(
        "--start", type=non_negative, default=Decimal(5), help="minutes until a new instance serves"
    )
    group.add_argument(
        "--idle", type=non_negative, default=Decimal(10), help="minutes without a request until scale-in"
    )
    group.add_argument(
        "--cold-start-seconds", type=non_negative, default=Decimal(10), help="serverless (%(default)s)"
    )
    group.add_argument("--invocations", type=whole_number, help="per minute and instance: the scaling target")
    group.add_argument("--seed", type=count, default=0, help="of the simulation (%(default)s)")


# --- types of the options


def non_negative(text: str) -> Decimal:
    """A number from 0 up."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return number


def positive(text: str) -> Decimal:
    """A number above 0."""
    if not (number := non_negative(text)):
        raise argparse.ArgumentTypeError("it must be above 0")
    return number


def fraction(text: str) -> float:
    """A number above 0, up to 1."""
    if (number := positive(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return float(number)


def whole_number(text: str, low: int = 1, high: int = 10**6) -> int:
    """A whole number from `low` to `high`."""
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high:,}")
    return int(text)


def count(text: str) -> int:
    """A whole number from 0 up."""
    return whole_number(text, 0)


def memory(text: str) -> int:
    """Convert a serverless memory size from MB, as in AWS's API, to GB, as in its price list."""
    if text not in [str(1024 * size) for size in range(1, 7)]:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1024, 2048, 3072, 4096, 5120 or 6144")
    return int(text) // 1024


def provisioned(text: str) -> int:
    """A number of provisioned serverless containers."""
    return whole_number(text, 0, SERVERLESS_LIMIT)
