"""What the image runs: `docker run IMAGE serve` serves the model in /opt/ml/model, as SageMaker asks it to.

The environment may have SAGEMAKER_BIND_TO_PORT (8080), and SERVE_CODE=archive: then the code that came with
the model runs in place of the image's, so that the archive alone decides what runs.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

MODEL = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
CODE = {"image": Path(__file__).resolve().parent, "archive": MODEL / "code"}
NOBODY = 65534  # Debian's user and group that own no file


def main(argv: list[str]) -> None:
    """Become the server. Raises SystemExit if that cannot be."""
    signal.signal(signal.SIGTERM, leave)  # until the server listens: Linux spares process 1 without a handler
    if argv != ["serve"]:
        raise SystemExit(f"error: this image knows one word, serve, not {' '.join(argv)!r}")
    source = os.environ.get("SERVE_CODE") or "image"
    if source not in CODE:
        raise SystemExit(f"error: SERVE_CODE is image or archive, not {source!r}")
    server = CODE[source] / "server.py"
    if not server.is_file():
        raise SystemExit(f"error: there is no {server}: `invoke package` makes archives that have it")
    if os.geteuid() == 0:
        become_nobody([MODEL, server.parent])
    port = os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")
    sys.path[0] = str(server.parent)
    sys.argv = [str(server), "--model", str(MODEL), "--host", "0.0.0.0", "--port", port]  # noqa: S104
    runpy.run_path(str(server), run_name="__main__")


def leave(*_: object) -> None:
    """The end, before there is anything to finish."""
    raise SystemExit(0)


def become_nobody(needed: list[Path]) -> None:
    """SageMaker starts containers as root; serving needs no right but to read these folders.

    Stays root, and says so, where nobody may not read all of them, or where the change is not allowed.
    """
    try:
        os.setgroups([])
        closed = closed_to_nobody(needed)
        if not closed:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            return
        reason = f"nobody else may read {closed[0]}"
    except OSError as error:
        reason = str(error)
    print(f"WARNING container: stays root: {reason}", flush=True)


def closed_to_nobody(folders: list[Path]) -> list[Path]:
    """What nobody may not read in these folders, by the kernel's own word. Raises OSError."""
    try:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
        return [path for path in paths if not os.access(path, needs(path), effective_ids=True)]
    finally:
        os.seteuid(0)
        os.setegid(0)


def needs(path: Path) -> int:
    """What reading takes: of a folder, to look into it as well."""
    return os.R_OK | os.X_OK if path.is_dir() else os.R_OK


if __name__ == "__main__":
    main(sys.argv[1:])
