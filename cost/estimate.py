"""What an endpoint costs: before there is one, for any kind and traffic, and while there is one.

    python cost/estimate.py                            # the month's bill, line by line
    python cost/estimate.py --example guide            # the case of fast.ai's guide, then and now
    python cost/estimate.py --compare --requests 10/s  # every kind and instance, cheapest first
    python cost/estimate.py --simulate --curve office  # a day, request by request
    python cost/estimate.py --hourly --kind real-time --instance ml.c7i.large --count 2 --json  # for programs
    python cost/estimate.py --refresh --region eu-west-1
    python cost/estimate.py --actual                   # the endpoints in your account

Exit codes: 0 done · 2 usage or configuration · 3 the world failed
"""

import argparse
import json
import os
import sys
from decimal import Decimal

import month
import options
import speed
from bill import LARGEST, Case
from prices import CostError, find_instance, load
from traffic import make

MODEL = Decimal(95)  # MB; resnet50 in fp32, packed


def main(argv: list[str] | None = None) -> int:
    """Reckon, and print a table, JSON or CSV; returns the exit code."""
    sys.stdout.reconfigure(errors="replace")
    try:
        args = options.parse(argv, __doc__.splitlines()[0])
        report = reckon(args)
        if args.json:
            print(json.dumps(report, default=plain, indent=2, ensure_ascii=False))
        else:
            import show

            (show.csv_lines if args.csv else show.show)(report)
        return 0
    except CostError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def reckon(args: argparse.Namespace) -> dict:
    """The report that the command line asks for, as JSON has it."""
    if args.actual:
        import actual

        return actual.report(args.region, args.billed)
    region = args.region or "us-east-1"
    if args.refresh:
        import refresh

        return refresh.refresh(region, args.offers, args.without or [])
    book = load(region)
    if args.example:
        import example

        return example.guide(book)
    case, notes = make_case(args)
    if args.kind == "training" and not args.hourly:
        raise CostError("training is priced by --hourly: a month of it has no lines")
    if args.hourly:
        return month.hourly(case, book)
    common = {"region": region, "currency": "USD", "age": book.age(), "traffic": month.about(case)}
    common |= {"speed": case.speeds.source, "assumed": notes}
    if args.compare:
        import compare

        return common | compare.report(case, book)
    if args.simulate:
        import simulate

        most = args.max or simulate.UNLIMITED
        settings = simulate.Settings(float(args.cold), most, args.invocations, args.seed)
        return common | simulate.report(case, book, settings, float(args.limit))
    return common | month.report(case, book)


def make_case(args: argparse.Namespace) -> tuple[Case, list[str]]:
    """The case that the command line says, and what had to be assumed for it. Raises CostError."""
    find_instance(args.instance)
    if not args.count and not args.hourly:
        raise CostError("count 0 has no traffic to carry: give 1 or more instances")
    if args.picture > LARGEST.get(args.kind, args.picture):
        text = f"a picture of {args.picture} KB is too large for {args.kind}"
        raise CostError(f"{text}: it takes {LARGEST[args.kind]:,} KB")
    model, notes = model_size(args)
    case = Case(
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
        busy=args.busy,
        start=float(args.start),
        idle=float(args.idle),
        speeds=find_speeds(args),
    )
    return case, notes


def model_size(args: argparse.Namespace) -> tuple[Decimal, list[str]]:
    """MB of the model: what was said, the archive's, or an assumption that is told."""
    if args.model is not None:
        return args.model, []
    if args.archive and args.archive.is_file():
        return Decimal(args.archive.stat().st_size) / 10**6, []
    why = f"there is no {args.archive}" if args.archive else "no archive is named"
    return MODEL, [f"the model is taken for {MODEL} MB: {why}"]


def find_speeds(args: argparse.Namespace) -> speed.Speeds:
    """Pictures per second: what was said, measured, or assumed."""
    if args.throughput:
        return speed.given(args.instance, float(args.throughput))
    on = None if args.kind == "serverless" else args.instance
    found = speed.measured(args.bench, on, args.count) if args.bench else None
    return found or speed.assumed()


def plain(number: object) -> int | float:
    """A Decimal as JSON has it."""
    if isinstance(number, Decimal):
        return int(number) if number == number.to_integral_value() else float(number)
    raise TypeError(f"{number!r} is no number")


if __name__ == "__main__":
    raise SystemExit(main())
