"""Entry point of the container image: `docker run IMAGE serve`, as SageMaker runs it, serves /opt/ml/model.

Environment variables: SAGEMAKER_BIND_TO_PORT (8080), SM_MODEL_DIR (/opt/ml/model) and SERVE_CODE: with
`archive` the model's own code runs in place of the image's, so that the archive alone decides what runs.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

MODEL = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
CODE = {"image": Path(__file__).resolve().parent, "archive": MODEL / "code"}
NOBODY = 65534  # Debian's user nobody and group nogroup, which own no file


def main(argv: list[str]) -> None:
    """Run server.py in this process. Raises SystemExit on wrong settings."""
    # Until uvicorn has its own handler: Linux ignores SIGTERM for a PID 1 without one.
    signal.signal(signal.SIGTERM, exit_now)
    if argv != ["serve"]:
        raise SystemExit(f"error: this image has one command, serve, not {' '.join(argv)!r}")
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


def exit_now(*_: object) -> None:
    """Handle SIGTERM before there is any request to finish."""
    raise SystemExit(0)


def become_nobody(needed: list[Path]) -> None:
    """Drop root, as which SageMaker starts containers: serving needs only to read these folders.

    Stays root, with a warning, if the user nobody cannot read all of them, or if dropping root is denied.
    """
    try:
        os.setgroups([])
        unreadable = unreadable_for_nobody(needed)
        if not unreadable:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            return
        reason = f"only root can read {unreadable[0]}"
    except OSError as error:
        reason = str(error)
    print(f"WARNING container: stays root: {reason}", flush=True)


def unreadable_for_nobody(folders: list[Path]) -> list[Path]:
    """What the user nobody cannot read in these folders, as the kernel decides. Raises OSError."""
    try:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
        return [path for path in paths if not os.access(path, access_needed(path), effective_ids=True)]
    finally:
        os.seteuid(0)
        os.setegid(0)


def access_needed(path: Path) -> int:
    """The permissions that reading needs: for a folder, to enter it as well."""
    return os.R_OK | os.X_OK if path.is_dir() else os.R_OK


if __name__ == "__main__":
    main(sys.argv[1:])
