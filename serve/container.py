"""What the image runs: `docker run IMAGE serve` serves the model in /opt/ml/model, as SageMaker asks it to.

The environment may have SAGEMAKER_BIND_TO_PORT (8080), and SERVE_CODE=archive: then the code that came with
the model runs in place of the image's, so that the archive alone decides what runs.
"""

import os
import sys
from pathlib import Path

MODEL = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
NOBODY = 65534  # Debian's user and group that own no file


def main(argv: list[str]) -> None:
    """Become the server. Raises SystemExit if that cannot be."""
    if argv != ["serve"]:
        raise SystemExit(f"error: this image knows one word, serve, not {' '.join(argv)!r}")
    archived = os.environ.get("SERVE_CODE") == "archive"
    code = MODEL / "code" if archived else Path(__file__).parent
    if not (code / "server.py").is_file():
        raise SystemExit(f"error: there is no {code}/server.py: `invoke package` makes archives that have it")
    become_nobody()
    port = os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")
    server = [str(code / "server.py"), "--model", str(MODEL), "--host", "0.0.0.0", "--port", port]  # noqa: S104
    # In place of this process, so that SageMaker's SIGTERM reaches the server.
    os.execv(sys.executable, [sys.executable, *server])  # noqa: S606


def become_nobody() -> None:
    """SageMaker starts containers as root; serving needs no right but to read the model."""
    if os.geteuid():
        return
    closed = [path for path in (MODEL, *MODEL.rglob("*")) if not is_open(path)]
    if closed:
        print(f"WARNING container: stays root, for nobody else may read {closed[0]}", flush=True)
        return
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def is_open(path: Path) -> bool:
    """Whether everybody may read a file, or look into a folder."""
    needed = 0o005 if path.is_dir() else 0o004
    return path.stat().st_mode & needed == needed


if __name__ == "__main__":
    main(sys.argv[1:])
