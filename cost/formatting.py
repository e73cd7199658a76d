"""Format numbers, sentences and curves for the tables."""

import math
import sys
from decimal import Decimal

BLOCKS = "▁▂▃▄▅▆▇█"


def money(usd: Decimal) -> str:
    """Dollars to the cent; less than a dollar to three significant digits."""
    usd = Decimal(usd)
    if not usd:
        return "0.00"
    if abs(usd) >= Decimal("0.995"):
        return f"{usd:,.2f}"
    return f"{usd:.{max(2, 2 - usd.adjusted())}f}"


def dollars(usd: Decimal | str | None) -> str:
    """Dollars for a table cell: text stays as it is, and None is a dash."""
    if usd is None or isinstance(usd, str):
        return usd or "-"
    return "$" + money(usd)


def exact(usd: Decimal) -> str:
    """All digits, at least to the cent."""
    usd = Decimal(usd)
    return f"{usd:,.2f}" if usd == round(usd, 2) else f"{usd.normalize():,f}"


def number(amount: Decimal | float) -> str:
    """An amount, with at most six decimals."""
    amount = Decimal(amount)
    text = f"{amount:,.{6 if amount.adjusted() < 0 else 3}f}"
    return text.rstrip("0").rstrip(".")


def percent(share: float) -> str:
    """A share of 0..1 in per cent; a small one is never rounded to 0."""
    value = 100 * share
    if 0 < value < 0.01:
        return "<0.01 %"
    decimals = 2 if 0 < value < 1 else 1 if value < 10 else 0
    return f"{value:.{decimals}f} %"


def seconds(duration: float | None) -> str:
    """A duration; a dash if there is none."""
    if duration is None:
        return "-"
    if duration < 1:
        return f"{1000 * duration:.0f} ms"
    return f"{duration:.3g} s" if duration < 120 else f"{duration / 60:.3g} min"


def age(hours: Decimal) -> str:
    """An age in hours or days."""
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def span(ends: list[int]) -> str:
    """A range such as "1 to 4", or one number if both ends are equal."""
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


def traffic_title(traffic: dict) -> str:
    """The mean rate, the curve and its peak."""
    per_second = traffic["per_second"]
    mean = f"{number(per_second)} requests/s" if per_second >= 1 else f"{60 * per_second:.3g} requests/min"
    peak = traffic["busiest_per_second"] / per_second
    return f"{mean}, {traffic['curve']}" + (f" (busiest minute {peak:.1f} x)" if peak > 1.001 else "")


def sparkline(values: list[float]) -> str:
    """A curve in one line of text."""
    top = max(values)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(len(BLOCKS) * value / top))] for value in values)


def footnotes(report: dict) -> list[str]:
    """The sentences below a report's table."""
    sentences = list(report.get("notes", []))
    if break_even := report.get("break_even"):
        sentences.append(break_even_sentence(break_even))
    sentences += unranked_sentences(report.get("unranked", []))
    if report.get("speed"):
        sentences.append(f"throughput {report['speed']}")
    sentences += report.get("assumed", [])
    dates = report.get("as_of")
    if dates and "sentence" not in report:
        derived = f"; derived, not seen in AWS's list: {len(dates['derived'])}" if dates["derived"] else ""
        sentences.append(
            f"prices in USD, without tax and free tier, as of {dates['oldest']} to {dates['newest']}{derived}"
        )
    return [*sentences, report["age"]] if report.get("age") else sentences


def break_even_sentence(break_even: dict) -> str:
    """The traffic up to which serverless is cheaper."""
    per_day, least = break_even["requests_a_day"], break_even["least_instances"]
    other = f"real-time with at least {least} instance{'s' * (least > 1)}"
    if per_day is None:
        return f"break-even: {other} is cheaper than serverless for any traffic"
    return (
        f"break-even: serverless is cheaper than {other} up to about {two_digits(per_day):,} requests a day"
    )


def plot(lines: dict) -> str:
    """USD per month over requests per day, both on a logarithmic scale."""
    import plotille

    values = [usd for line in lines.values() for _, usd in line]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    figure = plotille.Figure()
    figure.width, figure.height, figure.origin = 60, 2 * (high - low), False
    figure.color_mode, figure.with_colors = "names", sys.stdout.isatty()
    figure.x_label, figure.y_label = "requests a day", "USD a month"
    figure.set_x_limits(1, 7)
    figure.set_y_limits(low, high)
    figure.x_ticks_fkt = lambda power, _: thousands(10**power)
    figure.y_ticks_fkt = lambda power, _: (
        f"{10 ** round(power):,g}" if abs(power - round(power)) < 0.1 else ""
    )
    for (name, line), colour in zip(lines.items(), ("cyan", "yellow", "magenta", "green"), strict=True):
        if line:
            xs, ys = ([math.log10(number) for number in column] for column in zip(*line, strict=True))
            figure.plot(xs, ys, lc=colour)
            figure.text([xs[1]], [ys[1]], [name], lc=colour)
    return figure.show()


def thousands(count: float) -> str:
    """A round number with a suffix: 10k, 1M."""
    return next(
        f"{count / unit:.0f}{letter}" for unit, letter in ((1e6, "M"), (1e3, "k"), (1, "")) if count >= unit
    )


def unranked_sentences(rows: list[dict]) -> list[str]:
    """One sentence per reason, with the throughput from which each type would pay."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        text = row["on"]
        if row["per_hour"]:
            pays = f", pays from {number(row['pays_from'])} pictures/s on" if row.get("pays_from") else ""
            text += f" (${exact(row['per_hour'])} an hour{pays})"
        reasons.setdefault(row["reason"], []).append(text)
    return [f"not ranked, {reason}: {', '.join(names)}" for reason, names in reasons.items()]


def two_digits(value: int) -> int:
    """Round to two significant digits."""
    return round(value, 1 - math.floor(math.log10(value)))
