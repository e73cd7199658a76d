"""A rule that is stated in two folders is the same in both, because no folder imports another.

Constants are read from the source without importing it. A folder that a copy has deleted is left out.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import yaml

from support import ROOT

ANYTHING = object()  # where a folder is not here


def source(path: str) -> str | None:
    """A file's text; None if its folder was deleted. Fails if only the file is missing."""
    return (ROOT / path).read_text() if (ROOT / path.partition("/")[0]).is_dir() else None


def constant(path: str, name: str) -> Any:
    """The value of a constant at the top of a file, from literals, arithmetic and earlier constants."""
    if (text := source(path)) is None:
        return ANYTHING
    known: dict[str, Any] = {}
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and (value := getattr(node, "value", None)):
            try:
                known[target.id] = eval(ast.unparse(value), {"__builtins__": {}}, known)
            except (NameError, TypeError, AttributeError):
                continue  # made by a call
    return known[name]


def item(path: str, name: str, key: str, factor: int = 1) -> Any:
    """One entry of a constant that is a dictionary of numbers."""
    value = constant(path, name)
    return value if value is ANYTHING else value[key] * factor


def text_of(path: str, pattern: str) -> Any:
    """The first group of a regular expression in a file, which has to match."""
    if (text := source(path)) is None:
        return ANYTHING
    found = re.search(pattern, text)
    assert found, f"{path} has no {pattern}"
    return found[1]


def definitions(path: str, *names: str) -> Any:
    """The source of functions or classes at the top of a file."""
    if (text := source(path)) is None:
        return ANYTHING
    found = {node.name: ast.unparse(node) for node in ast.parse(text).body if hasattr(node, "name")}
    return [found[name] for name in names]


def without(value: Any, others: Iterable) -> Any:
    return value if value is ANYTHING else tuple(one for one in value if one not in others)


def first_of(value: Any) -> Any:
    return value if value is ANYTHING else value[0]


def as_set(value: Any) -> Any:
    return value if value is ANYTHING else set(value)


def default(section: str, key: str) -> Any:
    """A setting's default in config/defaults.yaml."""
    return yaml.safe_load((ROOT / "config/defaults.yaml").read_text())[section][key]


PROJECT_RULE = r're\.fullmatch\("(.+?)", (?:args\.)?project\)'
MALLOC = r'MALLOC_MMAP_THRESHOLD_[":= ]+(\d+)'

ANSWERS = ("package/gates.py", "client/verdict.py", "deploy/lifecycle/smoke_test.py")
LEARNER = (
    *(
        "LearnerError",
        "read_learner",
        "find_target",
        "answering_loss",
        "find_task",
        "class_names",
        "quiet",
        "centred",
    ),
    *("predict", "as_item", "place", "one_line"),
)

GROUPS: dict[str, Callable[[], Iterable[Any]]] = {
    "picture formats": lambda: [
        as_set(constant("train/pictures.py", "FORMATS")),
        as_set(constant("serve/pixels.py", "FORMATS")),
        as_set(constant("client/predictor.py", "FORMATS")),
    ],
    "pixels of the largest picture": lambda: [
        constant("train/pictures.py", "MAX_PIXELS"),
        constant("serve/pixels.py", "MAX_PIXELS"),
    ],
    "suffixes of picture files in a folder": lambda: [
        without(constant("client/cli.py", "SUFFIXES"), (".heic", ".avif")),  # found, and refused by name
        constant("bench/load.py", "SUFFIXES"),
    ],
    "pixels to which the client scales pictures down": lambda: [
        constant("client/predictor.py", "SHRINK"),
        constant("package/large_pictures.py", "SHRINK"),
        constant("bench/serving.py", "SHRINK"),
        default("predict", "shrink"),
    ],
    "the margin of a clear answer": lambda: [
        constant("package/gates.py", "CONFIDENT_MARGIN"),
        constant("client/cli.py", "CONFIDENT_MARGIN"),
    ],
    "how far a value may be from the one that is expected": lambda: [
        constant(file, "MAX_ERROR") for file in ANSWERS
    ],
    "how far a small value may be from the one that is expected": lambda: [
        constant(file, "MIN_ERROR") for file in ANSWERS
    ],
    "how far a point may be from the one that is expected": lambda: [
        constant(file, "MAX_SHIFT") for file in ANSWERS
    ],
    "the pixel of a mask that the model does not see": lambda: [
        constant("serve/answers.py", "UNSEEN"),
        constant("train/handover.py", "UNSEEN"),
        constant("package/learner.py", "UNSEEN"),
    ],
    "HEIC and AVIF": lambda: [
        constant(file, "HEIF") for file in ("serve/pixels.py", "client/predictor.py", "train/pictures.py")
    ],
    "how HEIC and AVIF are recognised": lambda: [
        definitions(file, "is_heif")
        for file in ("serve/pixels.py", "client/predictor.py", "train/pictures.py")
    ],
    "the sentence on HEIC and AVIF": lambda: [
        text_of(file, r'"(HEIC and AVIF .+?)"')
        for file in ("serve/pixels.py", "client/predictor.py", "train/pictures.py")
    ],
    "16-bit and float pictures to 8 bits": lambda: [
        definitions("serve/pixels.py", "scale_levels"),
        definitions("train/pictures.py", "scale_levels"),
    ],
    "reading an exported Learner": lambda: [
        definitions("package/learner.py", *LEARNER),
        definitions("train/handover.py", *LEARNER),
    ],
    "bytes of a request": lambda: [
        constant("serve/inference.py", "MAX_BODY"),
        constant("client/predictor.py", "REALTIME_LIMIT"),
        item("cost/bill.py", "MAX_PICTURE", "real-time", 1000),
        item("cost/bill.py", "MAX_PICTURE", "async", 1000),
        item("cost/bill.py", "MAX_PICTURE", "batch", 1000),
        default("transform", "payload") * 10**6,
    ],
    "bytes of a request to a serverless endpoint": lambda: [
        constant("client/predictor.py", "SERVERLESS_LIMIT"),
        constant("deploy/lifecycle/smoke_test.py", "MAX_BYTES"),
        item("cost/bill.py", "MAX_PICTURE", "serverless", 1000),
    ],
    "concurrent requests of a serverless endpoint": lambda: [
        constant("cost/bill.py", "SERVERLESS_LIMIT"),
        constant("deploy/lifecycle/settings.py", "MAX_SERVERLESS_CONCURRENCY"),
    ],
    "kinds of endpoint": lambda: [
        as_set(constant("client/predictor.py", "KINDS")),
        as_set(constant("deploy/lifecycle/settings.py", "KINDS")),
    ],
    "a project's name": lambda: [
        text_of("deploy/aws/names.py", PROJECT_RULE),
        text_of("package/upload.py", PROJECT_RULE),
    ],
    "characters of a project's name": lambda: [
        constant("deploy/aws/names.py", "MAX_PROJECT_NAME"),
        constant("package/upload.py", "MAX_PROJECT_NAME"),
    ],
    "the tag with the project's name": lambda: [
        constant("deploy/aws/names.py", "PROJECT_TAG"),
        constant("cost/actual.py", "TAG"),
    ],
    "the tag with the previous configuration": lambda: [
        constant("deploy/aws/names.py", "PREVIOUS_TAG"),
        constant("cost/actual.py", "PREVIOUS"),
    ],
    "the size from which memory goes back to the system": lambda: [
        str(constant("serve/server.py", "MMAP_BYTES")),
        text_of("bench/servers.py", MALLOC),
    ],
    "the Region of a bucket": lambda: [
        text_of("package/upload.py", r'text = f"(the bucket \{bucket\} is in .+)"'),
        text_of("deploy/ecr/codebuild.py", r'text = f"(the bucket \{bucket\} is in .+)"'),
    ],
    "the Region of the price list in the repository": lambda: [
        constant("deploy/aws/pricing.py", "REFERENCE_REGION"),
        text_of("cost/estimate.py", r'args\.region or "([\w-]+)"'),
    ],
    "the price of the benchmark's instance": lambda: [
        constant("bench/report.py", "DOLLARS_PER_HOUR"),
        price_of("ml.c7i.large"),
    ],
    "requests a minute per instance, for autoscaling": lambda: [
        default_target(),
        first_of(re.findall(r"^TARGET = (\d+)", (ROOT / "tasks.py").read_text(), re.MULTILINE)),
    ],
}


def price_of(instance: str) -> Any:
    """Dollars an hour in cost/prices.json."""
    if (text := source("cost/prices.json")) is None:
        return ANYTHING
    rows = json.loads(text)["regions"]["us-east-1"]
    return next(row["price"] for row in rows if row["name"] == f"hosting:{instance}")


def default_target() -> Any:
    """What deploy takes for a blank `target`, as text."""
    return text_of("deploy/lifecycle/settings.py", r"\b(600)\b")


@pytest.mark.parametrize("rule", GROUPS)
def test_a_rule_is_the_same_wherever_it_is_stated(rule):
    values = [value for value in GROUPS[rule]() if value is not ANYTHING]
    assert all(value == values[0] for value in values), values


def function(path: str, name: str) -> ast.FunctionDef:
    """A function at the top of a file. Skips the test if the folder was deleted."""
    if (text := source(path)) is None:
        pytest.skip(f"{path} is not here")
    defined = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return next(node for node in defined if node.name == name)


def test_a_server_and_its_children_are_found_in_the_same_way():
    found = function("bench/servers.py", "session"), function("deploy/emulator/process.py", "session")
    assert ast.dump(found[0]) == ast.dump(found[1])


@pytest.mark.parametrize("path", ["client/cli.py", "bench/measure.py"])
def test_percentiles_are_by_nearest_rank(path):
    scope: dict[str, Any] = {"math": __import__("math")}
    exec(ast.unparse(function(path, "percentile")), scope)
    percentile = scope["percentile"]
    assert percentile(list(range(1, 101)), 99) == 99
    for count in (1, 2, 3, 10, 99, 100, 101):
        ordered = sorted(np.random.default_rng(count).normal(size=count).tolist())
        for percent in (1, 50, 90, 99, 100):
            assert percentile(ordered, percent) == np.percentile(ordered, percent, method="inverted_cdf")
