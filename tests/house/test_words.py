"""The field's standard terms, one for one thing, in code, messages and documents."""

import re
from pathlib import Path

from support import ROOT

INSTEAD = {  # a regular expression, and what to write
    r"\banew\b": "again, or rewrite",
    r"\bfor want of\b": "because there is no ...",
    r"\bnobody (is here|to ask|can be asked)|nobody is asked": "stdin is not a terminal: pass --yes",
    r"\bthe world\b": "external failure (network, AWS, disk)",
    r"\breckon": "estimate, compute",
    r"\bpatien(ce|tly)\b": "retry, max_wait",
    r"\b(ask|end)(s|ed)? it\b": "query it, delete it",
    r"\bas (it lies|they lie|it stands|they stand)\b": "unchanged",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bquick(er|est|ly|ness)\b": "fast, faster",
    r"\btake(s|n)? back\b|\btook back\b": "roll back, cancel",
    r"\bwhat was begun\b|\bis undone\b|\bundone now\b": "roll back",
    r"\bsays? no\b|\bthe answer is no\b": "reject, refuse; negative result",
    r"\btells? of\b": "report",
    r"\bas if by itself\b|\bof one's own\b": "your own",
    r"\bsure of\b|\bheld to\b": "confident; the reference",
    r"\bgo(es)? the whole road\b": "end to end",
}
OLD_NAMES = re.findall(  # files, functions and constants that have a plain name now
    r"\S+",
    """
    grey_picture printable patiently of_variant telling lasthour settle replacing trouble SURE
    hourly.py grey.py stop.py watch.py gate.py context.py images.py registry.py scaling.py front.py
    processes.py containers.py patience.py graphs.py large.py verdicts.py results.py sample.py
    waiting.py fleet.py speed.py wording.py month.py stacks.py probe.py targets.py cold.py
    cloud.py standins.py wire.py hub.py scripted.py tools.py builds.py offers.py commands.py
    """,
)
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".yml"}
EXCEPT = {"test_words.py"}  # which has to list them


def files() -> list[Path]:
    """Everything that people read; not what is generated."""
    folders = [one for one in ROOT.iterdir() if one.is_dir() and not one.name.startswith(".")]
    inside = [file for folder in folders if folder.name != "build" for file in folder.rglob("*")]
    found = [
        file for file in [*ROOT.iterdir(), *inside] if file.suffix in SUFFIXES or file.name == "Makefile"
    ]
    return sorted(file for file in found if file.is_file() and file.name not in EXCEPT)


def occurrences(pattern: re.Pattern[str]) -> list[str]:
    """file:line of each match."""
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files()
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def test_sentences_use_standard_terms():
    wrong = {
        f"say {better}": occurrences(re.compile(words, re.IGNORECASE)) for words, better in INSTEAD.items()
    }
    assert not {better: lines for better, lines in wrong.items() if lines}


def test_no_name_is_left_that_only_its_author_understands():
    names = "|".join(map(re.escape, OLD_NAMES))
    assert not occurrences(re.compile(rf"(?<![\w./-])({names})(?![\w-])"))
