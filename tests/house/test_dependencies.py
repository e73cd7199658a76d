"""requirements.lock holds what pyproject.toml asks for, by versions and hashes, and no address."""

import re
import tomllib

from support import ROOT

LOCK = (ROOT / "requirements.lock").read_text()


def test_the_lock_has_versions_and_hashes_only():
    lines = LOCK.splitlines()
    assert not [line for line in lines if "://" in line or re.search("(?<!no-emit-)index-url", line)]
    pinned = [line for line in lines if re.match(r"[a-z0-9]", line)]
    assert all("==" in line and line.endswith("\\") for line in pinned)


def test_the_lock_has_every_direct_dependency():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    needs = [need for group in groups.values() for need in group if isinstance(need, str)]
    names = {re.split(r"[^A-Za-z0-9_-]", need)[0] for need in needs}
    locked = set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))
    assert names <= locked
