"""The cost of an endpoint: before it exists, for any kind and traffic, and while it runs.

    python cost/estimate.py                            # the monthly bill, line by line
    python cost/estimate.py --example guide            # the example of fast.ai's guide, then and now
    python cost/estimate.py --compare --requests 10/s  # every kind and instance, cheapest first
    python cost/estimate.py --simulate --curve office  # a day, request by request
    python cost/estimate.py --hourly --kind real-time --instance ml.c7i.large --count 2 --json  # for programs
    python cost/estimate.py --refresh --region eu-west-1
    python cost/estimate.py --actual                   # the endpoints in your account

Exit codes: 0 success · 2 usage or configuration · 3 external failure
"""

import argparse
import io
import json
import os
import sys
from decimal import Decimal

import monthly
import options
import throughput
from bill import MAX_PICTURE, Scenario
from prices import CostError, find_instance, load
from traffic import make

ASSUMED_MODEL = Decimal(95)  # MB; resnet50 in fp32, packed


def main(argv: list[str] | None = None) -> int:
    """Print a table, JSON or CSV; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 shows "?" instead of failing
        sys.stdout.reconfigure(errors="replace")
    try:
        args = options.parse(argv, __doc__.splitlines()[0])
        report = build_report(args)
        if args.json:
            print(json.dumps(report, default=to_json_number, indent=2, ensure_ascii=False))
        else:
            import show

            (show.print_csv if args.csv else show.print_report)(report)
        return 0
    except CostError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_report(args: argparse.Namespace) -> dict:
    """The report that the command line requests, as JSON. Imports only what it needs. Raises CostError."""
    if args.actual:
        import actual

        return actual.report(args.region, billed=args.billed)
    region = args.region or "us-east-1"
    if args.refresh:
        import refresh

        return refresh.refresh(region, args.offers, args.without or [])
    book = load(region)
    if args.example:
        import example

        return example.guide(book)
    scenario, notes = make_scenario(args)
    if args.kind == "training" and not args.hourly:
        raise CostError("training has no monthly bill: give --hourly for its price")
    if args.hourly:
        return monthly.hourly_report(scenario, book)
    common = {"region": region, "currency": "USD", "age": book.age()}
    common |= {"traffic": monthly.describe_traffic(scenario), "speed": scenario.throughput.source}
    common |= {"assumed": notes}
    if args.compare:
        import compare

        return common | compare.report(scenario, book)
    if args.simulate:
        import simulate

        max_instances = args.max or simulate.UNLIMITED
        settings = simulate.Settings(
            float(args.cold_start_seconds), max_instances, args.invocations, args.seed
        )
        return common | simulate.report(scenario, book, settings, float(args.limit))
    return common | monthly.report(scenario, book)


def make_scenario(args: argparse.Namespace) -> tuple[Scenario, list[str]]:
    """The scenario of the command line, and a sentence for each assumption. Raises CostError."""
    find_instance(args.instance)
    if not args.count and not args.hourly:
        raise CostError("count 0 cannot serve traffic: give 1 or more instances")
    if args.picture > MAX_PICTURE.get(args.kind, args.picture):
        text = f"a picture of {args.picture} KB is too large for {args.kind}"
        raise CostError(f"{text}: the limit is {MAX_PICTURE[args.kind]:,} KB")
    model, notes = model_size(args)
    scenario = Scenario(
        kind=args.kind,
        instance=args.instance,
        count=args.count,
        memory=args.memory,
        provisioned=args.provisioned,
        hours=args.hours,
        traffic=make(args.requests, args.curve),
        picture=args.picture,
        answer=args.answer,
        model=model,
        logs=args.logs,
        volume=args.volume,
        scaling=args.max > 0,
        target_utilization=args.target_utilization,
        start_minutes=float(args.start),
        idle_minutes=float(args.idle),
        throughput=find_throughput(args),
    )
    return scenario, notes


def model_size(args: argparse.Namespace) -> tuple[Decimal, list[str]]:
    """MB of the model: as given, the archive's, or assumed, with a sentence about that."""
    if args.model is not None:
        return args.model, []
    if args.archive and args.archive.is_file():
        return Decimal(args.archive.stat().st_size) / 10**6, []
    why = f"{args.archive} does not exist" if args.archive else "no --archive is given"
    return ASSUMED_MODEL, [f"assuming a model of {ASSUMED_MODEL} MB: {why}"]


def find_throughput(args: argparse.Namespace) -> throughput.Throughput:
    """Pictures per second: as given, measured, or assumed."""
    if args.throughput:
        return throughput.given(args.instance, float(args.throughput))
    instance = None if args.kind == "serverless" else args.instance
    found = throughput.measured(args.bench, instance, args.count) if args.bench else None
    return found or throughput.assumed()


def to_json_number(number: object) -> int | float:
    """Convert a Decimal for JSON: whole numbers to int."""
    if isinstance(number, Decimal):
        return int(number) if number == number.to_integral_value() else float(number)
    raise TypeError(f"{number!r} is not a number")


if __name__ == "__main__":
    raise SystemExit(main())
