"""Reports as tables for people, and as CSV for spreadsheets; both from what --json prints."""

import csv
import os
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wording import age, dollars, exact, money, number, plot, rate, seconds, sentences, share, span, sparkline

NARROW = 110  # characters; in fewer, figures would be cut
RANKED = 12  # rows of --compare in the table; JSON has all


def show(report: dict) -> None:
    """Print a report."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    console.width = max(console.width, NARROW)
    title, headings, rows, footer = tabulate(report)
    if rows:
        table = Table(
            title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, header_style="dim"
        )
        for heading in headings:
            table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left")
        for row in rows:
            table.add_row(*row)
        if footer:
            table.add_section()
        for row in footer:
            table.add_row(*(Text(cell, "bold") for cell in row))
        console.print(table)
    elif title:
        console.print(title, soft_wrap=True)
    if "plot" in report:
        console.print(plot(report["plot"]), soft_wrap=True)
    for sentence in sentences(report):
        console.print(sentence, soft_wrap=True)


def csv_lines(report: dict) -> None:
    """Print the report's rows as CSV: the same keys as in JSON."""
    rows = next(
        (
            report[key]
            for key in ("lines", "rows", "kinds", "outcomes", "endpoints", "items")
            if key in report
        ),
        [report],
    )
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(sys.stdout, keys, restval="")
    writer.writeheader()
    writer.writerows(rows)


def tabulate(report: dict) -> tuple[str, list[str], list[list[str]], list[list[str]]]:
    """A report's title, headings (">" to the right), rows, and rows below the line."""
    for key, make in (
        ("lines", month),
        ("example", example),
        ("kinds", kinds),
        ("outcomes", outcomes),
        ("endpoints", endpoints),
        ("sentence", lambda report: (report["sentence"], [], [], [])),
    ):
        if key in report:
            return make(report)
    raise KeyError("a report of no known kind")


def month(report: dict) -> tuple:
    """The bill."""
    traffic = report["traffic"]
    title = (
        f"{report['kind']}, {report['on']}, {report['region']}: {number(traffic['per_month'])} requests "
        f"in a month of {number(report['hours'])} hours"
    )
    rows = [
        [
            line["item"],
            number(line["amount"]),
            line["unit"],
            "no charge" if not line["unit_price"] else "$" + exact(line["unit_price"]),
            "$" + money(line["monthly"]),
            line["as_of"] + (" derived" if line["basis"] in ("derived", "third-party") else ""),
        ]
        for line in report["lines"]
    ]
    total = report["total"]
    footer = [
        [name, "", "", "", "$" + money(total[key]), ""]
        for name, key in (("A month", "month"), ("A year", "year"), ("1,000 predictions", "per_1000"))
    ]
    return title, ["item", ">amount", "unit", ">unit price", ">monthly", "price seen"], rows, footer


def example(report: dict) -> tuple:
    """The guide's case."""
    rows = []
    for row in report["rows"]:
        then = [
            "$" + exact(row[key]) if key in row else "-"
            for key in ("unit_price_2019", "guide", "monthly_2019")
        ]
        unit = row["unit"].replace("instance-hour", "hours").replace("GB-month", "GB")
        amount = f"{number(row['amount'])} {unit}"
        today = ["$" + exact(row["unit_price"]), "$" + exact(row["monthly"])]
        rows.append([row["item"], amount, *then, *today, row["as_of"]])
    guide, corrected, same, today = (
        "$" + exact(report["total"][key]) for key in ("guide", "2019", "same_lines", "today")
    )
    footer = [
        ["Total", "", "", guide, corrected, "", same, ""],
        ["with the volume", "", "", "", "", "", today, ""],
    ]
    headings = [
        "item",
        ">amount",
        ">2019",
        ">the guide said",
        ">right in 2019",
        ">today",
        ">a month",
        "price seen",
    ]
    title = f"The guide's example: 2 x ml.t2.medium, {report['region']}, a request a minute, 744 hours"
    return title, headings, rows, footer


def kinds(report: dict) -> tuple:
    """Every kind side by side."""
    shown, seen = [], set()
    for row in report["kinds"]:
        key = row["kind"] if row["kind"] != "serverless" else row["on"]
        if row["kind"] == "real-time" or key not in seen:
            shown.append(row)
        seen.add(key)
    others = [row for row in shown if row["kind"] != "real-time"]
    shown = [row for row in shown if row in others or shown.index(row) < RANKED]
    rows = [
        [
            row["kind"],
            row["on"].removeprefix("serverless, "),
            share(row["load"]),
            f"{row['speed']:.3g} ({row['basis']})",
            "$" + money(row["monthly"]),
            "$" + money(row["per_1000"]),
            row["note"],
        ]
        for row in shown
    ]
    traffic = report["traffic"]
    title = (
        f"{rate(traffic)}, {report['region']}: every kind, cheapest first ({len(report['kinds'])} in --json)"
    )
    return title, ["kind", "on", ">load", ">pictures/s of one", ">a month", ">1,000", ""], rows, []


def outcomes(report: dict) -> tuple:
    """A simulated day."""
    rows = [
        [
            row["kind"],
            "-" if row["instances"] is None else span(row["instances"]),
            "$" + money(row["monthly"]),
            seconds(row["p50"]),
            seconds(row["p99"]),
            share(row["over_limit"]),
            "-" if row["kind"] == "asynchronous" else share(row["refused"]),
            share(row["cold"]) if row["instances"] is None else "-",
            f"{row['simulated']:,}",
        ]
        for row in report["outcomes"]
    ]
    headings = ["kind", ">instances", ">a month", ">p50", ">p99", f">over {seconds(report['limit'])}"]
    headings += [">refused", ">cold", ">simulated"]
    title = f"{rate(report['traffic'])}, {report['region']}  |{sparkline(report['busy'])}|"
    return title, headings, rows, []


def endpoints(report: dict) -> tuple:
    """What runs in the account."""
    rows = [
        [
            row["endpoint"],
            row["project"],
            row["state"],
            row["on"],
            age(row["age_hours"]),
            *(dollars(row[key]) for key in ("per_hour", "spent", "month_end", "billed")),
        ]
        for row in report["endpoints"]
    ]
    total = report["total"]
    footer = [
        [
            "All",
            "",
            "",
            "",
            "",
            *(dollars(total[key]) for key in ("per_hour", "spent", "month_end", "billed")),
        ]
    ]
    headings = ["endpoint", "project", "state", "on", ">age", ">an hour", ">so far", ">this month", ">billed"]
    return f"Endpoints of this tool in {report['region']}", headings, rows, footer if rows else []
