"""Print answers as a table: class, confidence, time, and thumbnails where the terminal has colours."""

import os
import sys
from pathlib import PurePath

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

MAX_LARGE = 20  # pictures; if there are more, each gets one line
WIDTH, HEIGHT = 26, 16  # pixels of a thumbnail: a character is one wide and two high
# Widths of columns in characters.
CLASS = 28
BAR = 10
PERCENT = 7


def show(rows: list[dict], summary: dict, *, thumbnails: bool = True) -> None:
    """Print the answers, the summary, and the verdict if there is one."""
    # Without a terminal rich assumes 80 columns, too few for the log of a build.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(highlight=False, width=width)
    verdict = summary.get("verdict")
    wide = console.width >= (120 if verdict else 100)
    large = thumbnails and wide and len(rows) <= MAX_LARGE and can_paint(console)
    more = ["training", "label"] if verdict else ["others"] if wide and not large else []
    console.print(tabulate(rows, more, large=large))
    console.print(sum_up(summary), soft_wrap=True)
    if verdict:
        style = "bold green" if verdict["passed"] else "bold red"
        console.print(Text(verdict["sentence"], style), soft_wrap=True)


def can_paint(console: Console) -> bool:
    """Whether thumbnails can be printed: a terminal with enough colours, and no NO_COLOR."""
    return console.is_terminal and not console.no_color and console.color_system in ("256", "truecolor")


def tabulate(rows: list[dict], more: list[str], *, large: bool) -> Table:
    """One row per picture: a line, or if `large` a thumbnail and a line per class; then `more` columns."""
    names = [PurePath(row["file"]).name for row in rows]
    files = names if len(set(names)) == len(names) else [row["file"] for row in rows]
    width = class_width(rows, large=large)

    table = Table(box=SIMPLE_HEAD, header_style="dim", leading=int(large))
    if large:
        table.add_column(width=WIDTH)
    table.add_column("file", overflow="fold")
    table.add_column(grid(width, [("class", "confidence", "")]), width=width + BAR + PERCENT + 2)
    for heading in more:
        table.add_column(heading, overflow="fold")
    table.add_column("ms", justify="right", no_wrap=True)
    for file, row in zip(files, rows, strict=True):
        cells: list[Text | Table] = [Text(file, "red" if "error" in row else "")]
        cells.append(answer(row, width, large=large))
        if large:
            cells.insert(0, thumbnail(row["file"]))
        if more:
            cells += [others(row)] if more == ["others"] else training_cells(row)
        table.add_row(*cells, Text(f"{row['latency_ms']:.0f}", "dim"))
    return table


def class_width(rows: list[dict], *, large: bool) -> int:
    """Characters for the names of classes; CLASS if the message of a failed row has to fit, too."""
    widths = [cell_len(name) for row in rows for name, _, _ in ranking(row, large=large)]
    return min(CLASS, max([5, *widths, *(CLASS for row in rows if "error" in row)]))


def answer(row: dict, width: int, *, large: bool) -> Table | Text:
    """The middle column: class, bar, per cent; or the error's message."""
    if "error" in row:
        return Text(row["message"], "red")
    return grid(
        width, [line(name, share, chosen=chosen) for name, share, chosen in ranking(row, large=large)]
    )


def others(row: dict) -> Text:
    """The classes after the first, cut to the width of the column."""
    rest = [p for p in row.get("predictions", [])[1:] if p["confidence"] >= 0.005]
    text = ", ".join(f"{p['class']} {percent(p['confidence'], 0)}" for p in rest)
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def line(name: str, confidence: float, *, chosen: bool) -> tuple[Text, ProgressBar, Text]:
    """One class: its name, a bar, and per cent; bright if it is the endpoint's answer."""
    colour = "green" if confidence >= 0.8 else "yellow" if confidence >= 0.5 else "dark_orange"
    style = colour if chosen else "bright_black"
    bar = ProgressBar(1, confidence, BAR, complete_style=style, finished_style=style)
    return Text(name, "bold" if chosen else "dim"), bar, Text(percent(confidence), "" if chosen else "dim")


def percent(share: float, digits: int = 1) -> str:
    """A share of 0..1 in per cent."""
    return f"{100 * share:.{digits}f} %"


def ranking(row: dict, *, large: bool) -> list[tuple[str, float, bool]]:
    """The lines of an answer: class, confidence, and whether the class is the endpoint's answer."""
    if "error" in row:
        return []
    chosen = row.get("classes", [row["class"]])
    if large:
        return [(p["class"], p["confidence"], p["class"] in chosen) for p in row["predictions"]]
    return [(", ".join(chosen) or "none", row["confidence"], True)]


def grid(width: int, lines: list[tuple]) -> Table:
    """Lines of class, bar and per cent, with the same column widths in every row of the table."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=width, no_wrap=True)
    grid.add_column(width=BAR, no_wrap=True)
    grid.add_column(width=PERCENT, justify="right", no_wrap=True)
    for line in lines:
        grid.add_row(*line)
    return grid


def training_cells(row: dict) -> list[Text]:
    """Training's prediction and the picture's label: a tick where it is the same as the answer.

    A difference is yellow where training was not sure: it does not count.
    """
    if not (entry := row.get("training")):
        return [Text("nothing", "dim"), Text()]
    predicted, labels = (", ".join(entry[key]) or "none" for key in ("predicted", "labels"))
    confidence = percent(entry["confidence"])
    prediction = (
        Text(f"✓ {confidence}", "green")
        if entry["agrees"]
        else Text(f"✗ {predicted} {confidence}", "bold red" if entry["sure"] else "yellow")
    )
    return [prediction, Text("✓", "green") if entry["right"] else Text(labels, "yellow")]


def thumbnail(file: str) -> Text:
    """The picture in half blocks: the upper pixel is the text's colour, the lower its background."""
    try:
        from PIL import Image, ImageOps

        picture = Image.open(file)
        picture.draft("RGB", (8 * WIDTH, 8 * HEIGHT))
        image = ImageOps.contain(ImageOps.exif_transpose(picture).convert("RGB"), (WIDTH, HEIGHT))
    except Exception:  # an address, or not a picture: the row has the reason
        return Text()
    text, pixels = Text(), image.tobytes()  # three bytes a pixel
    for y in range(0, image.height, 2):
        for x in range(image.width):
            starts = (3 * (min(row, image.height - 1) * image.width + x) for row in (y, y + 1))
            upper, lower = (Color.from_rgb(*pixels[start : start + 3]) for start in starts)
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    text.right_crop(1)
    return text


def sum_up(summary: dict) -> Text:
    """Counts, latency and throughput in one line."""
    text = Text(f"{summary['pictures']} picture{'s' * (summary['pictures'] != 1)}, ")
    text.append(f"{summary['failed']} failed", "bold red" if summary["failed"] else "")
    if summary["p50_ms"] is not None:
        text.append(f"; p50 {summary['p50_ms']:.0f} ms, p99 {summary['p99_ms']:.0f} ms")
        text.append(f"; {summary['pictures_per_second']:.1f} pictures/s")
    return text
