"""What the tests of cost share: an environment without an account, and estimate.py called in this process."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import pytest

from support import ROOT

# cost/ may be deleted from a copy of the repository; its tests are then not collected.
if not (ROOT / "cost" / "estimate.py").is_file():
    collect_ignore_glob = ["test_*.py"]


@dataclass
class Result:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """No AWS account, no price list of the user, the default width."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name == "COLUMNS"]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def run(capsys) -> Callable[..., Result]:
    """Call estimate.py with a command line."""
    import estimate

    def run(*words: str) -> Result:
        capsys.readouterr()
        try:
            code = estimate.main(list(words))
        except SystemExit as stop:  # argparse's
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def report(run) -> Callable[..., dict]:
    """Call estimate.py with a command line and parse its JSON, with numbers as Decimal."""

    def report(*words: str) -> dict:
        done = run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout, parse_float=Decimal)

    return report


@pytest.fixture
def book():
    """The repository's prices."""
    import prices

    return prices.load("us-east-1")
