"""bench/ may be deleted from a copy of the repository; its tests are then not collected."""

from support import ROOT

if not (ROOT / "bench" / "serving.py").is_file():
    collect_ignore_glob = ["test_*.py"]
