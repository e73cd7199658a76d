"""Pack a model folder for SageMaker: `python package/archive.py --model DIR --out FILE.tar.gz`.

The archive is reproducible: names are sorted, times and owners are left out. The same folder gives the same
bytes anywhere, so the archive's sha256 identifies its content.
"""

import argparse
import gzip
import hashlib
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NoReturn

REQUIRED = (
    "code/answers.py",
    "code/app.py",
    "code/engine.py",
    "code/fetch.py",
    "code/inference.py",
    "code/pixels.py",
    "code/requirements.txt",
    "code/server.py",
    "config.yaml",
    "model.json",
    "model.onnx",
)


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


class ArchiveError(Exception):
    """A folder that cannot be packed as an archive that SageMaker can serve."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(description="Pack a model folder as a reproducible model.tar.gz.")
    parser.add_argument("--model", type=Path, required=True, help="folder that package/export.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the .tar.gz to write")
    args = parser.parse_args(argv)
    try:
        sha256 = pack(args.model, args.out)
    except ArchiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {args.out} was not written: {error}", file=sys.stderr)
        return 3
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, sha256 {sha256}")
    return 0


def members(model: Path) -> dict[str, Path]:
    """The archive's files by name. Raises ArchiveError if one is missing or is a link."""
    if not model.is_dir():
        raise ArchiveError(f"there is no folder {model}: run `invoke package` to write it")
    paths = sorted((path.relative_to(model).as_posix(), path) for path in model.rglob("*"))
    files = {
        name: path for name, path in paths if not is_debris(name) and (path.is_symlink() or path.is_file())
    }
    missing = [name for name in (*REQUIRED, *graphs(model)) if name not in files]
    if missing:
        raise ArchiveError(f"{model} lacks {', '.join(missing)}: run `invoke package` again")
    links = [name for name, path in files.items() if path.is_symlink()]
    if links:
        raise ArchiveError(f"{model} has links, which SageMaker does not unpack: replace {', '.join(links)}")
    return files


def graphs(model: Path) -> list[str]:
    """The graphs besides model.onnx that model.json lists. Raises ArchiveError if it cannot be read."""
    try:
        return sorted(json.loads((model / "model.json").read_bytes())["sha256"].keys() - {"model.onnx"})
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        text = f"{model / 'model.json'} is not what export.py wrote: run `invoke package` again"
        raise ArchiveError(text) from None


def is_debris(name: str) -> bool:
    """Whether a file is a leftover of Python, an editor or a file manager (such as .DS_Store)."""
    return any(part == "__pycache__" or part.startswith(".") for part in name.split("/"))


def pack(model: Path, out: Path) -> str:
    """Write `out`, read it back to compare every member, and return its sha256.

    Raises ArchiveError or OSError; `out` is unchanged then.
    """
    files = members(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        temp = Path(folder) / out.name
        write(temp, files)
        if read(temp) != {name: path.read_bytes() for name, path in files.items()}:
            raise ArchiveError(f"{model} changed while it was packed, or the disk is broken: try again")
        os.replace(temp, out)
    with open(out, "rb") as archive:
        return hashlib.file_digest(archive, "sha256").hexdigest()


def write(archive: Path, files: dict[str, Path]) -> None:
    """Pack `files` in their order, without names, times or owners of this machine."""
    with (
        open(archive, "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, path in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, 0o644
            with open(path, "rb") as file:
                tar.addfile(info, file)


def read(archive: Path) -> dict[str, bytes]:
    """The content of an archive's files, by name."""
    with tarfile.open(archive) as tar:
        return {info.name: file.read() for info in tar if (file := tar.extractfile(info))}


if __name__ == "__main__":
    raise SystemExit(main())
