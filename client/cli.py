"""Send pictures to an endpoint and show its answers.

    python client/cli.py cat.jpg photos/ 'more/*.png' https://example.org/dog.jpg --url http://127.0.0.1:8080
    python client/cli.py photos/ --endpoint pets --json
    python client/cli.py --url http://127.0.0.1:8080 --expect build/local/train/validation.json

The endpoint may classify, predict values or points, or segment. `--expect` passes if at least 99 % of the
answers are those that training wrote: the same classes; each value within 1 % of its range over all pictures;
each point within 1 % of the picture's longer side; of masks, 99 % of all pixels.

Exit codes: 0 every picture was answered (and `--expect` passed) · 1 negative result · 2 usage · 3 external
failure (no endpoint, network, AWS)
"""

import argparse
import glob
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from predictor import KINDS, SHRINK, UNSAFE, ImagePredictor, PredictionError, read_mask, terminal_safe
from verdict import judge, tolerances

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
RARE_SUFFIXES = (".jpe", ".jfif", ".heif", ".hif")  # as some browsers and cameras name JPEG and HEIC
# Error codes that say nothing about the pictures: if all have one, there is no endpoint.
NO_ENDPOINT = ("unreachable", "timeout", "aws", "not_loaded", "busy", "unexpected")
CONFIDENT_MARGIN = 0.2  # of training's best class over the second: below it, rounding may swap the two
NAMED = 3  # of the files that are passed over
OWN_KEYS = ("file", "latency_ms", "error", "message", "training")  # of a row, whatever an answer contains

NO_ENDPOINT_GIVEN = (
    "no endpoint given: pass --endpoint NAME for one on SageMaker, or start one on this machine with "
    "`invoke local` and pass --url http://127.0.0.1:8080"
)


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {terminal_safe(message)}: see {self.prog} --help\n")


class CommandError(Exception):
    """Ends the command with an exit code and one sentence for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Send the pictures, show the answers and judge them; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # file names may have characters that their encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return run(parse(argv))
    except CommandError as error:
        print(f"error: {terminal_safe(str(error))}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, closed the pipe; Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="file, folder, quoted glob or address")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--endpoint", metavar="NAME", help="an endpoint on SageMaker")
    target.add_argument("--url", help="a plain server, such as http://127.0.0.1:8080")
    parser.add_argument(
        "--kind", choices=KINDS, help="of the endpoint on SageMaker (default: as AWS describes it)"
    )
    parser.add_argument(
        "--top-k", type=positive, default=5, metavar="N", help="a classifier's classes (%(default)s)"
    )
    parser.add_argument(
        "--concurrency", type=positive, default=4, metavar="N", help="requests at the same time (%(default)s)"
    )
    parser.add_argument(
        "--shrink",
        type=partial(positive, minimum=0),
        default=SHRINK,
        metavar="PIXELS",
        help="scale larger pictures down to this before sending; 0, and --expect, send them unscaled "
        "(%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument("--no-thumbnails", action="store_true", help="one line of text per picture")
    parser.add_argument(
        "--expect", type=Path, metavar="FILE", help="train's validation.json, to compare with"
    )
    return parser.parse_args(argv)


def positive(text: str, minimum: int = 1) -> int:
    """Parse a whole number from `minimum`."""
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {minimum}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code. Raises CommandError."""
    if not args.endpoint and not args.url:
        raise CommandError(2, NO_ENDPOINT_GIVEN)
    expected = read_expected(args.expect) if args.expect else {}
    pictures = find_pictures(args.pictures or list(expected))
    predictor = connect(args)

    started = time.perf_counter()
    rows = predict_all(predictor, pictures, args.top_k, args.concurrency)
    seconds = time.perf_counter() - started
    if all(row.get("error") in NO_ENDPOINT for row in rows):
        raise CommandError(3, rows[0]["message"])

    summary = {"endpoint": predictor.description, **summarise(rows, seconds)}
    if args.expect:
        try:
            summary["verdict"] = judge(rows, expected, args.expect)
        except ValueError as error:
            raise CommandError(2, str(error)) from error
    if args.json:
        print(to_json({"pictures": rows, "summary": summary}))
    else:
        from table import show

        show(all_safe(rows), all_safe(summary), thumbnails=not args.no_thumbnails)
    return 0 if not summary["failed"] and summary.get("verdict", {}).get("passed", True) else 1


def all_safe(value: Any) -> Any:
    """The value with every text in it safe to print: an endpoint could control the terminal."""
    if isinstance(value, str):
        return terminal_safe(value)
    if isinstance(value, list):
        return [all_safe(one) for one in value]
    return {key: all_safe(one) for key, one in value.items()} if isinstance(value, dict) else value


def to_json(value: Any) -> str:
    """Indented JSON, in which letters are readable and what is not safe to print is escaped (\\u009b)."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "\n".join(UNSAFE.sub(escape, line) for line in text.split("\n"))


def escape(match: re.Match[str]) -> str:
    """A character as JSON's escape, of which one beyond U+FFFF needs two."""
    digits = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[start : start + 4]}" for start in range(0, len(digits), 4))


def connect(args: argparse.Namespace) -> ImagePredictor:
    """The predictor for the endpoint on the command line. Raises CommandError."""
    shrink = 0 if args.expect else args.shrink  # training used unscaled images
    try:
        return ImagePredictor(args.endpoint, url=args.url, kind=args.kind, shrink=shrink, on_wait=once())
    except ValueError as error:
        raise CommandError(2, str(error)) from error
    except PredictionError as error:
        raise CommandError(3, str(error)) from error


def once() -> Callable[[str], None]:
    """A function that prints each sentence once, however many requests wait for the same thing."""
    printed = set()

    def print_once(sentence: str) -> None:
        if sentence not in printed:
            printed.add(sentence)
            print(terminal_safe(sentence), file=sys.stderr)

    return print_once


def read_expected(file: Path) -> dict[str, dict]:
    """Training's predictions in validation.json, by the picture's path. Raises CommandError."""
    try:
        entries = json.loads(file.read_bytes())
        expected = {str(file.parent / entry["file"]): read_entry(entry, file.parent) for entry in entries}
        values = [entry for entry in expected.values() if entry["kind"] == "values"]
        for entry, allowed in zip(values, tolerances([e["predicted"] for e in values]), strict=True):
            entry["tolerance"] = allowed
    except OSError as error:
        raise CommandError(2, f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(2, f"{file} is not a validation.json that training wrote") from error
    return expected


def read_entry(entry: dict, folder: Path) -> dict:
    """What training predicted for one picture, and its `kind` as in verdict.KINDS.

    Raises ValueError, KeyError, TypeError or AttributeError if training does not write such an entry.
    """
    labels, predicted = entry["labels"], entry["predicted"]
    read: dict[str, Any] = {"labels": None if labels is None else list(labels)}
    if "mask" in entry:
        shares = {str(name): float(share) for name, share in predicted.items()}
        return read | {"kind": "mask", "predicted": shares, "mask": str(folder / entry["mask"])}
    if "size" in entry:
        width, height = map(int, entry["size"])
        points = [[float(x), float(y)] for x, y in predicted]
        return read | {"kind": "points", "predicted": points, "size": [width, height]}
    if "confidence" in entry:
        sure = float(entry.get("margin", 1)) >= CONFIDENT_MARGIN
        confidence = float(entry["confidence"])
        return read | {"kind": "class", "predicted": list(predicted), "confidence": confidence, "sure": sure}
    labels = None if labels is None else [float(value) for value in labels]
    return {"kind": "values", "labels": labels, "predicted": [float(value) for value in predicted]}


def find_pictures(arguments: list[str]) -> list[str]:
    """Expand files, folders, globs and addresses into pictures, each once. Raises CommandError."""
    pictures = list(dict.fromkeys(picture for argument in arguments for picture in expand(argument)))
    if not pictures:
        raise CommandError(2, "no pictures given: pass files, folders or addresses, or --expect FILE")
    return pictures


def expand(argument: str) -> list[str]:
    """The pictures that one argument of the command line names. Raises CommandError if there is none."""
    path = Path(argument)
    if urlsplit(argument).scheme in ("http", "https") or path.is_file():
        return [argument]
    if path.is_dir():
        pictures, kind = in_folder(path), "picture in"
    else:
        pictures, kind = sorted(filter(os.path.isfile, glob.glob(argument, recursive=True))), "file"
    if not pictures:
        raise CommandError(2, f"there is no {kind} {argument}")
    return pictures


def in_folder(folder: Path) -> list[str]:
    """The pictures in a folder and its sub-folders, sorted, without hidden ones; other files are counted."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [f for f in files if not any(part.startswith(".") for part in f.relative_to(folder).parts)]
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES + RARE_SUFFIXES]
    if others := [file.name for file in files if file.suffix.lower() not in SUFFIXES + RARE_SUFFIXES]:
        names = ", ".join(others[:NAMED]) + ", ..." * (len(others) > NAMED)
        count = f"{len(others)} file{'s' * (len(others) > 1)} passed over"
        print(terminal_safe(f"{count}: {names}"), file=sys.stderr)
    return [str(file) for file in pictures]


def predict_all(predictor: ImagePredictor, pictures: list[str], top_k: int, concurrency: int) -> list[dict]:
    """Send every picture; fewer rows than pictures if there turns out to be no endpoint."""
    from rich.console import Console
    from rich.progress import track

    rows: list[dict] = []
    console = Console(stderr=True)
    count = f"{len(pictures)} picture{'s' * (len(pictures) > 1)}"
    print(f"sending {count} to {terminal_safe(predictor.description)}", file=sys.stderr)
    quiet = not console.is_terminal
    pool = ThreadPoolExecutor(concurrency)
    answers = pool.map(partial(predict, predictor, top_k), pictures)
    try:
        for row in track(
            answers, "predicting", len(pictures), console=console, transient=True, disable=quiet
        ):
            rows.append(row)
            if len(rows) == concurrency and all(row.get("error") in NO_ENDPOINT for row in rows):
                break
    finally:
        predictor.close()
        pool.shutdown(wait=False, cancel_futures=True)
    return rows


def predict(predictor: ImagePredictor, top_k: int, picture: str) -> dict:
    """Send one picture: its file, the milliseconds, and the answer or the error."""
    started = time.perf_counter()
    try:
        answer = {k: v for k, v in predictor.predict(picture, top_k).items() if k not in OWN_KEYS}
        if "mask" in answer:
            read_mask(answer)  # a broken one is an error of this picture
    except PredictionError as error:
        answer = {"error": error.code, "message": str(error)}
    return {"file": picture, "latency_ms": round((time.perf_counter() - started) * 1000, 1), **answer}


def summarise(rows: list[dict], seconds: float) -> dict:
    """Counts, latencies of the answered pictures in milliseconds, pictures per second."""
    latencies = sorted(row["latency_ms"] for row in rows if "error" not in row)
    return {
        "pictures": len(rows),
        "failed": len(rows) - len(latencies),
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "pictures_per_second": round(len(rows) / seconds, 1),
    }


def percentile(ordered: list[float], percent: int) -> float | None:
    """The nearest-rank percentile of sorted values (p99 of 1..100 is 99); None without values."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None


if __name__ == "__main__":
    raise SystemExit(main())
