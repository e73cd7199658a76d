"""Print reports as tables for people and as CSV for spreadsheets; both from the data that --json prints."""

import csv
import os
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from formatting import (
    age,
    dollars,
    exact,
    footnotes,
    money,
    number,
    percent,
    plot,
    seconds,
    span,
    sparkline,
    traffic_title,
)

MIN_WIDTH = 110  # characters; with fewer, rich would truncate figures
MAX_RANKED = 12  # rows of --compare in the table; JSON has all
MONEY_COLUMNS = ("per_hour", "spent", "month_end", "billed")
Printable = tuple[str, list[str], list[list[str]], list[list[str]]]  # title, headings, rows, footer


def print_report(report: dict) -> None:
    """Print a report as a table with footnotes."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    console.width = max(console.width, MIN_WIDTH)
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
    for sentence in footnotes(report):
        console.print(sentence, soft_wrap=True)


def print_csv(report: dict) -> None:
    """Print the report's rows as CSV, with the keys of JSON."""
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


def tabulate(report: dict) -> Printable:
    """A report's title, headings (">": aligned right), rows, and footer rows."""
    for key, make in (
        ("lines", monthly_bill),
        ("example", example),
        ("kinds", comparison),
        ("outcomes", outcomes),
        ("endpoints", endpoints),
        ("sentence", lambda report: (report["sentence"], [], [], [])),
    ):
        if key in report:
            return make(report)
    raise KeyError("a report of an unknown kind")


def monthly_bill(report: dict) -> Printable:
    """The monthly bill."""
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
        for name, key in (("Per month", "month"), ("Per year", "year"), ("1,000 predictions", "per_1000"))
    ]
    return title, ["item", ">amount", "unit", ">unit price", ">monthly", "price seen"], rows, footer


def example(report: dict) -> Printable:
    """The guide's example, in 2019 and today."""
    rows = []
    for row in report["rows"]:
        old = [
            "$" + exact(row[key]) if key in row else "-"
            for key in ("unit_price_2019", "guide", "monthly_2019")
        ]
        unit = row["unit"].replace("instance-hour", "hours").replace("GB-month", "GB")
        amount = f"{number(row['amount'])} {unit}"
        new = ["$" + exact(row["unit_price"]), "$" + exact(row["monthly"])]
        rows.append([row["item"], amount, *old, *new, row["as_of"]])
    guide, corrected, same_lines, today = (
        "$" + exact(report["total"][key]) for key in ("guide", "2019", "same_lines", "today")
    )
    footer = [
        ["Total", "", "", guide, corrected, "", same_lines, ""],
        ["With the volume", "", "", "", "", "", today, ""],
    ]
    headings = [
        "item",
        ">amount",
        ">2019",
        ">in the guide",
        ">corrected",
        ">today",
        ">monthly",
        "price seen",
    ]
    title = f"The guide's example: 2 x ml.t2.medium, {report['region']}, one request per minute, 744 hours"
    return title, headings, rows, footer


def comparison(report: dict) -> Printable:
    """Every kind side by side: the cheapest of each, and the cheapest real-time types."""
    shown: list[dict] = []
    seen: set[str] = set()
    for row in report["kinds"]:
        key = row["kind"] if row["kind"] != "serverless" else row["on"]
        if row["kind"] == "real-time" or key not in seen:
            shown.append(row)
        seen.add(key)
    others = [row for row in shown if row["kind"] != "real-time"]
    shown = [row for row in shown if row in others or shown.index(row) < MAX_RANKED]
    rows = [
        [
            row["kind"],
            row["on"].removeprefix("serverless, "),
            percent(row["load"]),
            f"{row['speed']:.3g} ({row['basis']})",
            "$" + money(row["monthly"]),
            "$" + money(row["per_1000"]),
            row["note"],
        ]
        for row in shown
    ]
    traffic = report["traffic"]
    title = (
        f"{traffic_title(traffic)}, {report['region']}: "
        f"every kind, cheapest first ({len(report['kinds'])} in --json)"
    )
    return title, ["kind", "on", ">load", ">pictures/s each", ">monthly", ">1,000", ""], rows, []


def outcomes(report: dict) -> Printable:
    """A simulated day."""
    rows = [
        [
            row["kind"],
            "-" if row["instances"] is None else span(row["instances"]),
            "$" + money(row["monthly"]),
            seconds(row["p50"]),
            seconds(row["p99"]),
            percent(row["over_limit"]),
            "-" if row["kind"] == "asynchronous" else percent(row["refused"]),
            percent(row["cold"]) if row["instances"] is None else "-",
            f"{row['simulated']:,}",
        ]
        for row in report["outcomes"]
    ]
    headings = ["kind", ">instances", ">monthly", ">p50", ">p99", f">over {seconds(report['limit'])}"]
    headings += [">refused", ">cold starts", ">simulated"]
    title = f"{traffic_title(report['traffic'])}, {report['region']}  |{sparkline(report['busy'])}|"
    return title, headings, rows, []


def endpoints(report: dict) -> Printable:
    """The endpoints in the account."""
    rows = [
        [
            row["endpoint"],
            row["project"],
            row["state"],
            row["on"],
            age(row["age_hours"]),
            *(dollars(row[key]) for key in MONEY_COLUMNS),
        ]
        for row in report["endpoints"]
    ]
    footer = [["Total", "", "", "", "", *(dollars(report["total"][key]) for key in MONEY_COLUMNS)]]
    headings = [
        "endpoint",
        "project",
        "state",
        "on",
        ">age",
        ">per hour",
        ">so far",
        ">this month",
        ">billed",
    ]
    return f"Endpoints of this tool in {report['region']}", headings, rows, footer if rows else []
