"""The model folder as SageMaker takes it: `python package/archive.py --model DIR --out FILE.tar.gz`.

The same folder makes the same bytes, whenever and by whomever it is packed: names in order, no times and no
owners. So the archive's sha256 names what is in it.
"""

import argparse
import gzip
import hashlib
import os
import sys
import tarfile
import tempfile
from pathlib import Path

REQUIRED = (
    "code/app.py",
    "code/inference.py",
    "code/requirements.txt",
    "code/server.py",
    "config.yaml",
    "model.json",
    "model.onnx",
)


class ArchiveError(Exception):
    """A folder that does not make an archive which SageMaker can serve."""


def main(argv: list[str] | None = None) -> int:
    """Pack one model folder."""
    parser = argparse.ArgumentParser(description="Pack a model folder as a reproducible model.tar.gz.")
    parser.add_argument("--model", type=Path, required=True, help="folder that package/export.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the .tar.gz to write")
    args = parser.parse_args(argv)
    try:
        sha256 = pack(args.model, args.out)
    except ArchiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, sha256 {sha256}")
    return 0


def members(model: Path) -> dict[str, Path]:
    """What goes into the archive, by name. Raises ArchiveError when something is missing or is a link."""
    files = {
        path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if not path.is_dir()
    }
    files = {name: path for name, path in files.items() if "__pycache__" not in name}
    missing = [name for name in REQUIRED if name not in files]
    if missing:
        raise ArchiveError(f"{model} lacks {', '.join(missing)}: run `invoke package` to write it anew")
    links = [name for name, path in files.items() if path.is_symlink()]
    if links:
        raise ArchiveError(f"{model} has links, which SageMaker does not unpack: replace {', '.join(links)}")
    return files


def pack(model: Path, out: Path) -> str:
    """Write `out` and return its sha256, after reading it back and comparing every member."""
    files = members(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=f".{out.name}-", dir=out.parent, delete=False) as file:
        temp = Path(file.name)
    try:
        with (
            open(temp, "wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name, path in files.items():
                add(tar, name, path)
        check(temp, files)
        temp.chmod(0o644)
        os.replace(temp, out)
    finally:
        temp.unlink(missing_ok=True)
    with open(out, "rb") as archive:
        return hashlib.file_digest(archive, "sha256").hexdigest()


def add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    """One member that says nothing of the machine it comes from."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = path.stat().st_size, 0o644
    with open(path, "rb") as file:
        tar.addfile(info, file)


def check(archive: Path, files: dict[str, Path]) -> None:
    """Read the archive back: the same names, at the root, with the same bytes."""
    with tarfile.open(archive) as tar:
        read = {info.name: tar.extractfile(info).read() for info in tar}
    if read != {name: path.read_bytes() for name, path in files.items()}:
        raise ArchiveError(
            f"the archive does not hold what {archive.parent} has: is the disk full or broken?"
        )


if __name__ == "__main__":
    raise SystemExit(main())
