"""Print what package/precision.py tried and chose."""

import os
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

NAMES = {
    "large": "12-megapixel photographs",
    "draft": "  decoded at reduced size",
    "shrink": "  scaled down by the client",
}
# SageMaker's hosting instances (botocore's ProductionVariantInstanceType), by the processors that AWS names
# on aws.amazon.com/ec2/instance-types: Sapphire Rapids has AMX; Ice Lake has VNNI, but no bf16; c5, m5 and r5
# are Skylake or Cascade Lake, of which only the latter has VNNI. None of this has been tried there.
INSTANCES = {
    "bf16": "ml.c7i, m7i and r7i",
    "int8": "ml.c7i, m7i, r7i, c6i, c6in, m6i, r6i, g4dn and some of c5, m5 and r5",
}


def show(spec: dict, ms: dict[str, float]) -> None:
    """Print the candidates as a table, what was chosen, and which instance types support it.

    `spec` is model.json's content, `ms` the milliseconds that precision.choose returned.
    """
    record = spec["precision"]
    # Without a terminal rich assumes 80 columns, too few for the log of a build.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(highlight=False, width=width)
    if "candidates" in record:
        console.print(tabulate(record, ms))
    for line in summarise(record):
        console.print(line, soft_wrap=True, markup=False)


def summarise(record: dict) -> list[str]:
    """The lines below the table: what the candidates were tried on, and what was chosen."""
    lines = []
    if "pictures" in record:
        clear = f", {record['confident']} of them with a clear fp32 answer" if "confident" in record else ""
        lines.append(
            f"tried on {record['pictures']} validation pictures{clear}; the times are for one picture on "
            "this machine"
        )
    if "shrink" in record:
        lines.append(
            f"the 12-megapixel photographs are {record['shrink']['pictures']} of these pictures, enlarged"
        )
    draft = "; large JPEGs are decoded at reduced size" if record["draft"] else ""
    first, *others = record["use"]
    choice = f"the first of {', '.join(record['use'])} that the processor supports" if others else first
    lines.append(f"precision {record['requested']}: {choice}{draft}")
    lines += [
        f"{mode} is supported by {INSTANCES[mode]}, judging by their processors"
        for mode in record["use"]
        if mode in INSTANCES
    ]
    return lines


def tabulate(record: dict, ms: dict[str, float]) -> Table:
    """A row for each candidate."""
    table = Table(box=SIMPLE_HEAD, header_style="dim")
    table.add_column("precision", no_wrap=True)
    for heading in ("accuracy", "agreement", "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    rows = record["candidates"] | ({"shrink": record["shrink"]} if "shrink" in record else {})
    for name, facts in rows.items():
        # No time where it would mislead: the GPU's graph ran on this CPU; scaling down is the client's work.
        time = f"{ms[name]:.1f}" if name in ms and name not in ("cuda-fp16", "shrink") else ""
        if name == "draft":
            table.add_row(NAMES["large"], "", "", f"{ms['large']:.1f}")
        shares = [
            f"{100 * facts[key]:.1f} %" if facts.get(key) is not None else ""
            for key in ("accuracy", "agreement")
        ]
        table.add_row(NAMES.get(name, name), *shares, time, verdict(facts))
    return table


def verdict(facts: dict) -> Text:
    """The gate's decision as text; fp32, which has no gate, is the reference."""
    if "passed" not in facts:
        return Text("reference", "dim")
    return Text("passed", "green") if facts["passed"] else Text(facts["reason"], "yellow")
