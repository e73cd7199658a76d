"""Print answers as a table, with thumbnails where the terminal has colours.

Of classifiers and segmentations it shows classes with bars, else the first values or points. A thumbnail has
the points and the mask drawn over it, in the colours of the bars.
"""

import os
import sys
from pathlib import Path, PurePath
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from predictor import ORIENTATION, open_picture, read_mask

MAX_LARGE = 20  # pictures; if there are more, each gets one line
WIDTH, HEIGHT = 26, 16  # pixels of a thumbnail: a character is one wide and two high
DIM = "bright_black"  # the bar of a class that is not part of the answer
UNSEEN = 255  # the pixels of a mask that the model does not see
# Widths of columns in characters.
CLASS = 28
BAR = 10
PERCENT = 7
MAX_LINES = 8  # classes of a segmentation beside its thumbnail
MAX_VALUES, MAX_POINTS = 6, 3  # in a line
# Red, green and blue of points and of a mask's classes, by their numbers; after the last the first again.
PALETTE = (
    (230, 60, 60), (60, 180, 75), (70, 130, 255), (255, 225, 25), (245, 130, 48), (200, 70, 230),
    (70, 240, 240), (250, 190, 212), (170, 110, 40), (128, 128, 0), (220, 190, 255), (0, 128, 128),
)  # fmt: skip


def show(rows: list[dict], summary: dict, *, thumbnails: bool = True) -> None:
    """Print the answers, the summary, and the verdict if there is one."""
    # Without a terminal rich assumes 80 columns, too few for the log of a build.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(highlight=False, width=width)
    verdict = summary.get("verdict")
    wide = console.width >= (120 if verdict else 100)
    large = thumbnails and wide and len(rows) <= MAX_LARGE and can_paint(console)
    if verdict:
        more = ["training", "label"] if any(label(row) for row in rows) else ["training"]
    else:
        ranked = any("class" in row or "mask" in row for row in rows)
        more = ["others"] if wide and ranked and not large else []
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
    table.add_column(heading(rows, width), width=width + BAR + PERCENT + 2)
    for name in more:
        table.add_column(name, overflow="fold")
    table.add_column("ms", justify="right", no_wrap=True)
    for file, row in zip(files, rows, strict=True):
        cells: list[Text | Table] = [Text(file, "red" if "error" in row else "")]
        cells.append(answer(row, width, large=large))
        if large:
            cells.insert(0, thumbnail(row))
        if more:
            cells += [others(row)] if more == ["others"] else training_cells(row)[: len(more)]
        table.add_row(*cells, Text(f"{row['latency_ms']:.0f}", "dim"))
    return table


def heading(rows: list[dict], width: int) -> Table | Text:
    """The heading of the middle column, for the kind of the first answer."""
    row: dict = next((row for row in rows if "error" not in row), {})
    if "class" not in row and ("values" in row or "points" in row):
        return Text("values" if "values" in row else "points")
    return grid(width, [("class", "share" if "class" not in row and "mask" in row else "confidence", "")])


def class_width(rows: list[dict], *, large: bool) -> int:
    """Characters for the names of classes, with which messages, values and points fit as well."""
    names = [name for row in rows for name, _, _ in ranking(row, large=large)]
    texts = [CLASS if "error" in row else len(text_of(row)) - BAR - PERCENT - 2 for row in rows]
    return min(CLASS, max([5, *map(cell_len, names), *texts]))


def answer(row: dict, width: int, *, large: bool) -> Table | Text:
    """The middle column: class, bar, per cent; or values, points, or the error's message."""
    if "error" in row:
        return Text(row["message"], "red")
    if lines := ranking(row, large=large):
        return grid(width, [line(*one) for one in lines])
    return Text(text_of(row))


def text_of(row: dict) -> str:
    """The values or points of an answer; empty if it has classes."""
    if "class" in row or "mask" in row:
        return ""
    return numbers(row["values"]) if "values" in row else points(row["points"])


def numbers(values: list[float]) -> str:
    """The first values of a regression, and how many there are if some are left out."""
    more = f", ... ({len(values)} values)" if len(values) > MAX_VALUES else ""
    return ", ".join(f"{value:.6g}" for value in values[:MAX_VALUES]) + more


def points(found: list[list[float]]) -> str:
    """The number of points, and the first of them in pixels."""
    first = " ".join(f"({x:.6g}, {y:.6g})" for x, y in found[:MAX_POINTS])
    return f"{len(found)} point{'s' * (len(found) > 1)}: {first}{' ...' * (len(found) > MAX_POINTS)}"


def others(row: dict) -> Text:
    """The classes after the first, cut to the width of the column."""
    key = "confidence" if "class" in row else "share"
    classes = row.get("predictions", []) if "class" in row else row.get("classes", [])
    rest = [one for one in classes[1:] if one[key] >= 0.005]
    text = ", ".join(f"{one['class']} {percent(one[key], 0)}" for one in rest)
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def line(name: str, share: float, style: str | None) -> tuple[Text, ProgressBar, Text]:
    """One class: its name, a bar, and per cent; bright in a style if it is part of the answer."""
    bar = ProgressBar(1, share, BAR, complete_style=style or DIM, finished_style=style or DIM)
    return Text(name, "bold" if style else "dim"), bar, Text(percent(share), "" if style else "dim")


def percent(share: float, digits: int = 1) -> str:
    """A share of 0..1 in per cent."""
    return f"{100 * share:.{digits}f} %"


def ranking(row: dict, *, large: bool) -> list[tuple[str, float, str | None]]:
    """The lines of an answer with classes: class, share, and the bar's style, None if it is not chosen."""
    if "class" in row:
        chosen = row.get("classes", [row["class"]])
        if not large or not row["predictions"]:
            return [(", ".join(chosen) or "none", row["confidence"], by_confidence(row["confidence"]))]
        ranked = [(one["class"], one["confidence"]) for one in row["predictions"]]
        return [(name, share, by_confidence(share) if name in chosen else None) for name, share in ranked]
    if "error" in row or "values" in row or "points" in row:
        return []
    classes = [(one["class"], one["share"]) for one in row["classes"]] or [("none", 0)]
    if not large:
        return [(*classes[0], "cyan")]
    found = [*classes_in(row), *[0] * MAX_LINES]  # an answer may name more classes than its mask has
    pairs = zip(classes[:MAX_LINES], found, strict=False)
    return [(name, share, "rgb({},{},{})".format(*colour(number))) for (name, share), number in pairs]


def by_confidence(confidence: float) -> str:
    """The colour of a bar."""
    return "green" if confidence >= 0.8 else "yellow" if confidence >= 0.5 else "dark_orange"


def classes_in(row: dict) -> list[int]:
    """The numbers of the classes in a mask, largest first: in the order of the answer's `classes`."""
    counts = read_mask(row).histogram()[:UNSEEN]
    return sorted((number for number in range(UNSEEN) if counts[number]), key=lambda n: -counts[n])


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class or a point by its number."""
    return PALETTE[number % len(PALETTE)]


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
    predicted, detail = training_texts(entry)
    style = "green" if entry["agrees"] else "bold red" if entry.get("sure", True) else "yellow"
    parts = ("✓", detail) if entry["agrees"] else ("✗", predicted, detail)
    prediction = Text(" ".join(filter(None, parts)), style)
    return [prediction, Text("✓", "green") if entry["right"] else Text(label(row), "yellow")]


def training_texts(entry: dict) -> tuple[str, str]:
    """What training predicted, and training's confidence or the answer's difference.

    Of points and masks, the prediction only where there is no answer.
    """
    kind, predicted = entry["kind"], entry["predicted"]
    if kind == "class":
        return ", ".join(predicted) or "none", percent(entry["confidence"])
    if kind == "values":
        return "", numbers(predicted)
    if "difference" in entry:
        difference = entry["difference"]
        return "", f"{percent(difference, 2)} differ" if kind == "mask" else f"{difference:.1f} pixels"
    if kind == "points":
        return points(predicted), ""
    return ", ".join(f"{name} {percent(share, 0)}" for name, share in predicted.items()), ""


def label(row: dict) -> str:
    """The picture's label; empty if it is unknown, and for points and masks, which are too long."""
    entry = row.get("training")
    if not entry or entry["labels"] is None or entry["kind"] not in ("class", "values"):
        return ""
    return numbers(entry["labels"]) if entry["kind"] == "values" else ", ".join(entry["labels"]) or "none"


def thumbnail(row: dict) -> Text:
    """The picture in half blocks: the upper pixel is the text's colour, the lower its background."""
    try:
        image = small_picture(row)
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


def small_picture(row: dict) -> Any:
    """A PIL image of the picture's thumbnail, with its answer's points or mask drawn over it."""
    from PIL import ImageOps

    image = open_picture(Path(row["file"]).read_bytes())
    size = image.size
    image.draft("RGB", (8 * WIDTH, 8 * HEIGHT))
    image.load()  # Pillow rotates a TIFF while it decodes
    sideways = image.getexif().get(ORIENTATION, 1) in range(5, 9)
    # The mask of a model that was packaged to ignore EXIF has the size of the picture as it is stored.
    if not (sideways and "mask" in row and (row["width"], row["height"]) == size != size[::-1]):
        image, size = ImageOps.exif_transpose(image), size[::-1] if sideways else size
    image = ImageOps.contain(image.convert("RGB"), (WIDTH, HEIGHT))
    if "class" in row or "error" in row or "values" in row:
        return image
    return draw_points(image, row["points"], size) if "points" in row else draw_mask(image, read_mask(row))


def draw_points(image: Any, found: list[list[float]], size: tuple[int, int]) -> Any:
    """Colour the pixels of a thumbnail at the points, which are in pixels of a picture of this size."""
    for number, (x, y) in enumerate(found):
        if 0 <= x <= size[0] and 0 <= y <= size[1]:
            at = int(x / size[0] * image.width), int(y / size[1] * image.height)
            image.putpixel((min(at[0], image.width - 1), min(at[1], image.height - 1)), colour(number))
    return image


def draw_mask(image: Any, mask: Any) -> Any:
    """Tint a thumbnail by the classes of a mask; what the model does not see stays as it is."""
    from PIL import Image

    small = mask.resize(image.size, Image.Resampling.NEAREST)
    colours = zip(*(colour(number) for number in range(256)), strict=True)
    tint = Image.merge("RGB", [small.point(list(channel)) for channel in colours])
    image.paste(Image.blend(image, tint, 0.5), mask=small.point([255] * UNSEEN + [0]))
    return image


def sum_up(summary: dict) -> Text:
    """Counts, latency and throughput in one line."""
    text = Text(f"{summary['pictures']} picture{'s' * (summary['pictures'] != 1)}, ")
    text.append(f"{summary['failed']} failed", "bold red" if summary["failed"] else "")
    if summary["p50_ms"] is not None:
        text.append(f"; p50 {summary['p50_ms']:.0f} ms, p99 {summary['p99_ms']:.0f} ms")
        text.append(f"; {summary['pictures_per_second']:.1f} pictures/s")
    return text
