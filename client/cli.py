"""Show an endpoint pictures, and see what it answers.

    python client/cli.py cat.jpg photos/ 'more/*.png' https://example.org/dog.jpg --url http://127.0.0.1:8080
    python client/cli.py photos/ --endpoint pets --json
    python client/cli.py --url http://127.0.0.1:8080 --expect build/local/train/validation.json

Exit codes: 0 every picture was answered (and as `--expect` says) · 1 not so · 2 usage · 3 no endpoint to ask
"""

import argparse
import glob
import json
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from predictor import KINDS, SHRINK, ImagePredictor, PredictionError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NO_ENDPOINT = ("unreachable", "timeout", "aws", "not_loaded", "busy", "unexpected")  # not the pictures' fault
SURE = 0.2  # margin of training's best class: below it, rounding may choose another
AGREE = 0.99  # of the answers that training was sure of

NEITHER = (
    "no endpoint to ask: give --endpoint NAME for one on SageMaker, or start one on this machine with "
    "`invoke local` and give --url http://127.0.0.1:8080"
)


class Stop(Exception):
    """The end, with an exit code and one sentence for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Ask, show, and judge; returns the exit code."""
    # Names of files can hold what a terminal or a log cannot.
    sys.stdout.reconfigure(errors="replace")
    sys.stderr.reconfigure(errors="replace")
    try:
        return run(parse(argv))
    except Stop as stop:
        print(f"error: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("stopped; waiting for what is under way", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has enough; Python would try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="file, folder, quoted glob or address")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--endpoint", metavar="NAME", help="an endpoint on SageMaker")
    where.add_argument("--url", help="a plain server, such as http://127.0.0.1:8080")
    parser.add_argument(
        "--kind", choices=KINDS, help="of the endpoint on SageMaker; without it, AWS is asked"
    )
    parser.add_argument(
        "--top-k", type=positive, default=5, metavar="N", help="classes per picture (%(default)s)"
    )
    parser.add_argument(
        "--concurrency", type=positive, default=4, metavar="N", help="at a time (%(default)s)"
    )
    parser.add_argument(
        "--shrink",
        type=partial(positive, least=0),
        default=SHRINK,
        metavar="PIXELS",
        help="scale larger pictures down to this before sending; 0, and --expect, send them as they are "
        "(%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--no-thumbnails", action="store_true", help="a line per picture")
    parser.add_argument(
        "--expect", type=Path, metavar="FILE", help="train's validation.json, to compare with"
    )
    return parser.parse_args(argv)


def positive(text: str, least: int = 1) -> int:
    """A whole number from `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """What the command line says, in order. Raises Stop."""
    if not args.endpoint and not args.url:
        raise Stop(2, NEITHER)
    expected = read_expected(args.expect) if args.expect else {}
    pictures = find_pictures(args.pictures or list(expected))
    predictor = connect(args)

    started = time.perf_counter()
    rows = ask_all(predictor, pictures, args.top_k, args.concurrency)
    seconds = time.perf_counter() - started
    if all(row.get("error") in NO_ENDPOINT for row in rows):
        raise Stop(3, rows[0]["message"])

    summary = {"asked": predictor.where, **summarise(rows, seconds)}
    if args.expect:
        summary["verdict"] = judge(rows, expected, args.expect)
    if args.json:
        print(json.dumps({"pictures": rows, "summary": summary}, indent=2, ensure_ascii=False))
    else:
        from table import show

        show(rows, summary, thumbnails=not args.no_thumbnails)
    return 0 if not summary["failed"] and summary.get("verdict", {}).get("passed", True) else 1


def connect(args: argparse.Namespace) -> ImagePredictor:
    """The predictor that the command line names. Raises Stop."""
    shrink = 0 if args.expect else args.shrink  # training saw the pictures as they are
    try:
        return ImagePredictor(args.endpoint, url=args.url, kind=args.kind, shrink=shrink, on_wait=once())
    except ValueError as error:
        raise Stop(2, str(error)) from error
    except PredictionError as error:
        raise Stop(3, str(error)) from error


def once() -> Callable[[str], None]:
    """Says each sentence once, however many requests wait for the same thing."""
    said = set()

    def say(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            print(sentence, file=sys.stderr)

    return say


def read_expected(file: Path) -> dict[str, dict]:
    """What training said of each picture in validation.json, by the picture's path. Raises Stop."""
    try:
        return {
            str(file.parent / entry["file"]): {
                "labels": list(entry["labels"]),
                "predicted": list(entry["predicted"]),
                "confidence": float(entry["confidence"]),
                "sure": float(entry.get("margin", 1)) >= SURE,
            }
            for entry in json.loads(file.read_bytes())
        }
    except OSError as error:
        raise Stop(2, f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Stop(2, f"{file} is not a validation.json that training wrote") from error


def find_pictures(words: list[str]) -> list[str]:
    """Files, folders, globs and addresses as single pictures, each once. Raises Stop."""
    pictures = list(dict.fromkeys(picture for word in words for picture in expand(word)))
    if not pictures:
        raise Stop(2, "no picture to ask about: give files, folders or addresses, or --expect FILE")
    return pictures


def expand(word: str) -> list[str]:
    """The pictures that one word of the command line stands for. Raises Stop if there is none."""
    path = Path(word)
    if urlsplit(word).scheme in ("http", "https") or path.is_file():
        return [word]
    if path.is_dir():
        found, what = in_folder(path), "picture in"
    else:
        found, what = sorted(filter(os.path.isfile, glob.glob(word, recursive=True))), "file"
    if not found:
        raise Stop(2, f"there is no {what} {word}")
    return found


def in_folder(folder: Path) -> list[str]:
    """The pictures in a folder and its sub-folders, sorted, without hidden ones."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return [str(f) for f in sorted(files) if not any(p.startswith(".") for p in f.relative_to(folder).parts)]


def ask_all(predictor: ImagePredictor, pictures: list[str], top_k: int, concurrency: int) -> list[dict]:
    """Ask about every picture; fewer rows than pictures if there turns out to be no endpoint."""
    from rich.console import Console
    from rich.progress import track

    rows: list[dict] = []
    console = Console(stderr=True)
    count = f"{len(pictures)} picture{'s' * (len(pictures) > 1)}"
    print(f"asking about {count}: {predictor.where}", file=sys.stderr)
    quiet = not console.is_terminal
    pool = ThreadPoolExecutor(concurrency)
    answers = pool.map(partial(ask, predictor, top_k), pictures)
    try:
        for row in track(answers, "asking", len(pictures), console=console, transient=True, disable=quiet):
            rows.append(row)
            if len(rows) == concurrency and all(row.get("error") in NO_ENDPOINT for row in rows):
                break
    finally:
        predictor.close()
        pool.shutdown(wait=False, cancel_futures=True)
    return rows


def ask(predictor: ImagePredictor, top_k: int, picture: str) -> dict:
    """One row: the file, the milliseconds, and the answer or the error."""
    started = time.perf_counter()
    try:
        answer = predictor.predict(picture, top_k)
    except PredictionError as error:
        answer = {"error": error.code, "message": str(error)}
    return {"file": picture, "latency_ms": round((time.perf_counter() - started) * 1000, 1), **answer}


def summarise(rows: list[dict], seconds: float) -> dict:
    """Counts, latencies in milliseconds (nearest rank, of the answered pictures), pictures per second."""
    latencies = sorted(row["latency_ms"] for row in rows if "error" not in row)
    return {
        "pictures": len(rows),
        "failed": len(rows) - len(latencies),
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "pictures_per_second": round(len(rows) / seconds, 1),
    }


def percentile(ordered: list[float], percent: int) -> float | None:
    """By nearest rank; None of nothing."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None


def judge(rows: list[dict], expected: dict[str, dict], source: Path) -> dict:
    """Do the answers agree with training? Adds `training` to the rows that it knows, by file name.

    Of the answers that training was sure of (of all, if of none) AGREE must agree, and none may be missing.
    """
    known = {PurePath(file).name: entry for file, entry in expected.items()}
    compared = [row for row in rows if PurePath(row["file"]).name in known]
    if not compared:
        raise Stop(2, f"none of these pictures is in {source}")
    for row in compared:
        row["training"] = compare(row, known[PurePath(row["file"]).name])
    answered = [row["training"] for row in compared if "error" not in row]
    sure = [said for said in answered if said["sure"]] or answered
    enough = sum(said["agrees"] for said in sure) >= AGREE * len(sure)
    agree, right = (sum(said[key] for said in answered) for key in ("agrees", "right"))
    verdict = {
        "passed": enough and len(answered) == len(compared),
        "compared": len(compared),
        "sure": len(sure),
        "agree": agree,
        "near_ties": len(answered) - agree - sum(not said["agrees"] for said in sure),
        "right": right,
        "largest_difference": max((said["difference"] for said in answered), default=0),
    }
    return verdict | {"sentence": word(verdict)}


def word(verdict: dict) -> str:
    """The verdict as a sentence."""
    count, ties, right = (verdict[key] for key in ("compared", "near_ties", "right"))
    others = f"; {ties} other{'s were near ties' if ties > 1 else ' was a near tie'}" if ties else ""
    return (
        f"{'passed' if verdict['passed'] else 'failed'}: {verdict['agree']} of {count} answers agree with "
        f"training{others}; largest difference in confidence {verdict['largest_difference']:.1e}; "
        f"{right} of {count} ({100 * right / count:.0f} %) match the label"
    )


def compare(row: dict, entry: dict) -> dict:
    """What training said of this picture, and whether the answer is the same."""
    if "error" in row:
        return {**entry, "agrees": False, "right": False}
    said = set(row.get("classes", [row["class"]]))
    return {
        **entry,
        "agrees": said == set(entry["predicted"]),
        "right": said == set(entry["labels"]),
        "difference": round(abs(row["confidence"] - entry["confidence"]), 6),
    }


if __name__ == "__main__":
    raise SystemExit(main())
