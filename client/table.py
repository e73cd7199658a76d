"""Answers as a table for people: class, confidence, time, and thumbnails where the terminal has colours."""

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

MANY = 20  # pictures; more than these get a line each
WIDTH, HEIGHT = 26, 16  # pixels of a thumbnail: a character is one wide and two high
CLASS = 28  # characters, as are these
BAR = 10
PERCENT = 7


def show(rows: list[dict], summary: dict, thumbnails: bool = True) -> None:
    """Print what was asked and answered, the summary, and the verdict if there is one."""
    # Without a terminal rich assumes 80 columns, too few for the log of a build.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(highlight=False, width=width)
    verdict = summary.get("verdict")
    wide = console.width >= (120 if verdict else 100)
    large = thumbnails and wide and len(rows) <= MANY and paints(console)
    more = ["training said", "label"] if verdict else ["others"] if wide and not large else []
    console.print(tabulate(rows, large, more))
    console.print(sum_up(summary), soft_wrap=True)
    if verdict:
        style = "bold green" if verdict["passed"] else "bold red"
        console.print(Text(verdict["sentence"], style), soft_wrap=True)


def paints(console: Console) -> bool:
    """Whether pictures can be painted here: a terminal, with enough colours, whose user wants them."""
    return console.is_terminal and not console.no_color and console.color_system in ("256", "truecolor")


def tabulate(rows: list[dict], large: bool, more: list[str]) -> Table:
    """A row per picture: if `large` a thumbnail and a line per class, else one line; then `more` columns."""
    names = [PurePath(row["file"]).name for row in rows]
    files = names if len(set(names)) == len(names) else [row["file"] for row in rows]
    width = class_width(rows, large)

    table = Table(box=SIMPLE_HEAD, header_style="dim", leading=int(large))
    if large:
        table.add_column(width=WIDTH)
    table.add_column("file", overflow="fold")
    table.add_column(grid(width, [("class", "confidence", "")]), width=width + BAR + PERCENT + 2)
    for heading in more:
        table.add_column(heading, overflow="fold")
    table.add_column("ms", justify="right", no_wrap=True)
    for file, row in zip(files, rows, strict=True):
        cells = [Text(file, "red" if "error" in row else ""), answer(row, large, width)]
        if large:
            cells.insert(0, thumbnail(row["file"]))
        if more:
            cells += [others(row)] if more == ["others"] else training(row)
        table.add_row(*cells, Text(f"{row['latency_ms']:.0f}", "dim"))
    return table


def class_width(rows: list[dict], large: bool) -> int:
    """Characters for the names of classes, and enough for the sentence of a row that failed."""
    widths = [cell_len(name) for row in rows for name, _, _ in ranking(row, large)]
    return min(CLASS, max([5, *widths, *(CLASS for row in rows if "error" in row)]))


def answer(row: dict, large: bool, width: int) -> Table | Text:
    """The middle of a row: class, bar, per cent; or why there is no answer."""
    if "error" in row:
        return Text(row["message"], "red")
    return grid(width, [line(*ranked) for ranked in ranking(row, large)])


def others(row: dict) -> Text:
    """The classes after the first, as far as there is room."""
    rest = [p for p in row.get("predictions", [])[1:] if p["confidence"] >= 0.005]
    text = ", ".join(f"{p['class']} {percent(p['confidence'], 0)}" for p in rest)
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def line(name: str, confidence: float, said: bool) -> tuple[Text, ProgressBar, Text]:
    """One class: its name, a bar, and per cent; bright if it is what the endpoint says of the picture."""
    colour = "green" if confidence >= 0.8 else "yellow" if confidence >= 0.5 else "dark_orange"
    style = colour if said else "bright_black"
    bar = ProgressBar(1, confidence, BAR, complete_style=style, finished_style=style)
    return Text(name, "bold" if said else "dim"), bar, Text(percent(confidence), "" if said else "dim")


def percent(share: float, digits: int = 1) -> str:
    """A share of 0..1 in per cent."""
    return f"{100 * share:.{digits}f} %"


def ranking(row: dict, large: bool) -> list[tuple[str, float, bool]]:
    """The lines of an answer: class, confidence, and whether the endpoint says that of the picture."""
    if "error" in row:
        return []
    said = row.get("classes", [row["class"]])
    if large:
        return [(p["class"], p["confidence"], p["class"] in said) for p in row["predictions"]]
    return [(", ".join(said) or "none", row["confidence"], True)]


def grid(width: int, lines: list[tuple]) -> Table:
    """Lines of class, bar and per cent, in columns that are the same in every row of the table."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=width, no_wrap=True)
    grid.add_column(width=BAR, no_wrap=True)
    grid.add_column(width=PERCENT, justify="right", no_wrap=True)
    for line in lines:
        grid.add_row(*line)
    return grid


def training(row: dict) -> list[Text]:
    """What training said, and the picture's label: a tick where it is the same as the answer.

    A difference is yellow where training was not sure, and so does not count.
    """
    if not (entry := row.get("training")):
        return [Text("nothing", "dim"), Text()]
    predicted, labels = (", ".join(entry[key]) or "none" for key in ("predicted", "labels"))
    confidence = percent(entry["confidence"])
    said = (
        Text(f"✓ {confidence}", "green")
        if entry["agrees"]
        else Text(f"✗ {predicted} {confidence}", "bold red" if entry["sure"] else "yellow")
    )
    return [said, Text("✓", "green") if entry["right"] else Text(labels, "yellow")]


def thumbnail(file: str) -> Text:
    """The picture in half blocks, the upper pixel as their colour and the lower as their background."""
    try:
        from PIL import Image, ImageOps

        image = Image.open(file)
        image.draft("RGB", (8 * WIDTH, 8 * HEIGHT))
        image = ImageOps.contain(ImageOps.exif_transpose(image).convert("RGB"), (WIDTH, HEIGHT))
    except Exception:  # an address, or no picture: the row says so
        return Text()
    text = Text()
    for y in range(0, image.height, 2):
        for x in range(image.width):
            pixels = [Color.from_rgb(*image.getpixel((x, min(y + i, image.height - 1)))) for i in (0, 1)]
            text.append("▀", Style(color=pixels[0], bgcolor=pixels[1]))
        text.append("\n")
    text.right_crop(1)
    return text


def sum_up(summary: dict) -> Text:
    """Counts and speed in one line."""
    text = Text(f"{summary['pictures']} picture{'s' * (summary['pictures'] != 1)}, ")
    text.append(f"{summary['failed']} failed", "bold red" if summary["failed"] else "")
    if summary["p50_ms"] is not None:
        text.append(f"; p50 {summary['p50_ms']:.0f} ms, p99 {summary['p99_ms']:.0f} ms")
        text.append(f"; {summary['pictures_per_second']:.1f} pictures/s")
    return text
