"""Numbers, sentences and curves as people read them."""

import math
import sys
from decimal import Decimal

BLOCKS = "▁▂▃▄▅▆▇█"


def money(usd: Decimal) -> str:
    """Dollars to the cent; what is less than a dollar to three digits."""
    usd = Decimal(usd)
    if not usd:
        return "0.00"
    if abs(usd) >= Decimal("0.995"):
        return f"{usd:,.2f}"
    return f"{usd:.{max(2, 2 - usd.adjusted())}f}"


def dollars(usd: Decimal | str | None) -> str:
    """Dollars of a cell; words stay words, and what nobody knows is a dash."""
    if usd is None or isinstance(usd, str):
        return usd or "-"
    return "$" + money(usd)


def exact(usd: Decimal) -> str:
    """Every digit of it, with cents at least."""
    usd = Decimal(usd)
    return f"{usd:,.2f}" if usd == round(usd, 2) else f"{usd.normalize():,f}"


def number(amount: Decimal) -> str:
    """An amount, to six digits after the point at most."""
    amount = Decimal(amount)
    text = f"{amount:,.{6 if amount.adjusted() < 0 else 3}f}"
    return text.rstrip("0").rstrip(".")


def share(part: float) -> str:
    """A share of 0..1 in per cent; what is not nothing does not read as nothing."""
    percent = 100 * part
    if 0 < percent < 0.01:
        return "<0.01 %"
    return (
        f"{percent:.2f} %"
        if percent < 1 and percent
        else f"{percent:.0f} %"
        if percent >= 10
        else f"{percent:.1f} %"
    )


def seconds(took: float | None) -> str:
    """A duration; a dash where nobody was answered."""
    if took is None:
        return "-"
    return f"{1000 * took:.0f} ms" if took < 1 else f"{took:.3g} s" if took < 120 else f"{took / 60:.3g} min"


def age(hours: Decimal) -> str:
    """How old something is."""
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def span(ends: list[int]) -> str:
    """From ... to."""
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


def rate(traffic: dict) -> str:
    """The traffic in words."""
    per_second = traffic["per_second"]
    mean = f"{number(per_second)} requests/s" if per_second >= 1 else f"{60 * per_second:.3g} requests/min"
    busiest = traffic["busiest_per_second"] / per_second
    return f"{mean}, {traffic['curve']}" + (f" (busiest minute {busiest:.1f} x)" if busiest > 1.001 else "")


def sparkline(values: list[float]) -> str:
    """A curve in one line of text."""
    top = max(values)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(len(BLOCKS) * value / top))] for value in values)


def sentences(report: dict) -> list[str]:
    """What a report says below its table."""
    found = list(report.get("notes", []))
    even = report.get("break_even")
    if even:
        found.append(even_sentence(even))
    found += unranked(report.get("unranked", []))
    if report.get("speed"):
        found.append(f"speed {report['speed']}")
    found += report.get("assumed", [])
    dates = report.get("as_of")
    if dates and "sentence" not in report:
        derived = f"; derived, not seen in AWS's list: {len(dates['derived'])}" if dates["derived"] else ""
        found.append(
            f"prices in USD, without tax and free tier, as of {dates['oldest']} to {dates['newest']}{derived}"
        )
    return [*found, report["age"]] if report.get("age") else found


def even_sentence(even: dict) -> str:
    """Where serverless stops being the cheaper one."""
    per_day, least = even["requests_a_day"], even["least_instances"]
    other = f"real-time with at least {least} instance{'s' * (least > 1)}"
    if per_day is None:
        return f"break-even: {other} is cheaper than serverless from the first request on"
    return (
        f"break-even: serverless is cheaper than {other} up to about {significant(per_day):,} requests a day"
    )


def plot(lines: dict) -> str:
    """USD a month over requests a day, both in powers of ten."""
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
    """A round number in few letters."""
    return next(
        f"{count / unit:.0f}{letter}" for unit, letter in ((1e6, "M"), (1e3, "k"), (1, "")) if count >= unit
    )


def unranked(rows: list[dict]) -> list[str]:
    """A sentence for each reason not to be ranked, with what a type would have to do for its price."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        text = row["on"]
        if row["per_hour"]:
            pays = f", pays from {number(row['pays_from'])} pictures/s on" if row.get("pays_from") else ""
            text += f" (${exact(row['per_hour'])} an hour{pays})"
        reasons.setdefault(row["reason"], []).append(text)
    return [f"not ranked, {reason}: {', '.join(names)}" for reason, names in reasons.items()]


def significant(value: int) -> int:
    """Two digits, and zeros."""
    return round(value, 1 - math.floor(math.log10(value)))
