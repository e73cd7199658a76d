"""The command line of estimate.py; a value that is out of bounds is refused by name."""

import argparse
from decimal import Decimal, InvalidOperation
from pathlib import Path

from bill import SERVERLESS_LIMIT

KINDS = ("real-time", "serverless", "async", "batch", "training")
OFFERS = "https://pricing.us-east-1.amazonaws.com"


def parse(argv: list[str] | None, description: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--example", choices=["guide"], help="fast.ai's guide of 2019, then and now")
    modes.add_argument("--compare", action="store_true", help="every kind and instance, cheapest first")
    modes.add_argument("--simulate", action="store_true", help="a day, request by request")
    modes.add_argument("--hourly", action="store_true", help="what an hour costs before anyone asks")
    modes.add_argument("--refresh", action="store_true", help="read AWS's price list into your own cache")
    modes.add_argument("--actual", action="store_true", help="the endpoints that run in your account")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON and nothing else")
    form.add_argument("--csv", action="store_true", help="print CSV and nothing else")
    add_endpoint(parser)
    add_traffic(parser)
    add_speed(parser)
    group = parser.add_argument_group("AWS")
    group.add_argument("--without", action="append", metavar="ITEM", help="--refresh does not ask for it")
    group.add_argument("--offers", default=OFFERS, metavar="URL", help="where --refresh reads")
    group.add_argument("--billed", action="store_true", help="--actual asks Cost Explorer too, for $0.01")
    return parser.parse_args(argv)


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """What the endpoint is."""
    group = parser.add_argument_group("the endpoint")
    group.add_argument("--kind", default="real-time", choices=KINDS, help="%(default)s")
    group.add_argument("--instance", default="ml.c7i.large", help="%(default)s")
    group.add_argument(
        "--count", type=places, default=1, help="instances; with scaling the fewest (%(default)s)"
    )
    group.add_argument("--memory", type=memory, default="4096", help="MB, serverless (%(default)s)")
    group.add_argument("--provisioned", type=provisioned, default=0, help="serverless containers kept ready")
    group.add_argument("--region", help="us-east-1; of --actual, that of your AWS configuration")
    group.add_argument("--max", type=places, default=0, help="the most instances, by scaling; 0: no scaling")
    group.add_argument("--volume", type=amount, help="GB of an instance's disk; else what AWS gives")


def add_traffic(parser: argparse.ArgumentParser) -> None:
    """What it has to do."""
    group = parser.add_argument_group("the traffic")
    group.add_argument("--requests", default="1/min", help="a mean such as 10/s or 5000/day (%(default)s)")
    group.add_argument("--curve", default="constant", help="constant, office, spike, or a .csv of times")
    group.add_argument("--picture", type=amount, default=Decimal(100), help="KB (%(default)s)")
    group.add_argument("--answer", type=amount, default=Decimal(300), help="bytes (%(default)s)")
    group.add_argument("--logs", type=amount, default=Decimal(200), help="bytes a request (%(default)s)")
    group.add_argument("--model", type=amount, help="MB; else the archive's size")
    group.add_argument("--archive", type=Path, help="model.tar.gz, if it is built")
    group.add_argument("--hours", type=above, default=Decimal(744), help="of a month: 24 x 31, or 730")


def add_speed(parser: argparse.ArgumentParser) -> None:
    """How fast it is, and what is assumed of AWS."""
    group = parser.add_argument_group("speed")
    group.add_argument("--bench", type=Path, help="what bench/load.py wrote, if it did")
    group.add_argument("--throughput", type=above, help="pictures/s of one instance, instead of that")
    group.add_argument("--busy", type=share, default=0.7, help="share of it to plan for (%(default)s)")
    group.add_argument("--limit", type=above, default=Decimal(1), help="seconds for an answer (%(default)s)")
    group.add_argument(
        "--start", type=amount, default=Decimal(5), help="minutes until a new instance answers"
    )
    group.add_argument(
        "--idle", type=amount, default=Decimal(10), help="minutes until what is not asked goes"
    )
    group.add_argument("--cold", type=amount, default=Decimal(10), help="seconds of a serverless cold start")
    group.add_argument("--invocations", type=whole, help="a minute and instance, at which scaling aims")
    group.add_argument("--seed", type=places, default=0, help="of the simulation (%(default)s)")


# --- the flags' own types


def amount(text: str) -> Decimal:
    """A number from 0."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return number


def above(text: str) -> Decimal:
    """A number above 0."""
    if not (number := amount(text)):
        raise argparse.ArgumentTypeError("it must be above 0")
    return number


def share(text: str) -> float:
    """A number above 0, up to 1."""
    if (number := above(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return float(number)


def whole(text: str, least: int = 1, most: int = 10**6) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most:,}")
    return int(text)


def places(text: str) -> int:
    """A whole number from 0."""
    return whole(text, 0)


def memory(text: str) -> int:
    """GB that a serverless container can have, from MB as AWS has it."""
    if text not in [str(1024 * size) for size in range(1, 7)]:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1024, 2048, 3072, 4096, 5120 or 6144")
    return int(text) // 1024


def provisioned(text: str) -> int:
    """Serverless containers kept ready."""
    return whole(text, 0, SERVERLESS_LIMIT)
