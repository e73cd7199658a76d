"""Look into a Learner's file without loading it: what it is, and which Python wrote it.

A pickle runs code when it is loaded, and the code of another Python can end the process that loads it.
"""

import io
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from handover import LearnerError

REMEDY = "call hand_over and run `invoke package` where it was trained, or use the same versions here"
START = 16  # bytes of a function's code in which RESUME stands; two bytes are an instruction
RESUME = {151: "3.11 or 3.12", 149: "3.13", 128: "3.14"}  # opcode.opmap["RESUME"], by Python
PRECALL = 166  # an opcode of Python 3.11 alone, before every call
CALL, RETURN_CONST = 171, 121  # of 3.12, if there is no PRECALL: before 3.12 nothing has the number 121


def check_file(file: Path) -> None:
    """Refuse what cannot be a Learner, or one of another Python. Raises LearnerError."""
    if file.is_dir():
        found = next(iter(sorted(file.glob("*.pkl"))), file / "export.pkl")
        raise LearnerError(f"--learner {file} is a folder: name the file, such as {found}")
    if not file.is_file():
        raise LearnerError(f"--learner {file}: there is no such file")
    names, codes = read_pickles(file, unpack(file))
    if any(name.startswith("fastai.basic_train ") for name in names):
        text = "is an export of fastai 1, which fastai 2 cannot load: train again with fastai 2"
        raise LearnerError(f"{file} {text}")
    if not any(re.fullmatch(r"fastai\.\S+ \w*Learner", name) for name in names):
        modules = {name.partition(" ")[0].partition(".")[0] for name in names}
        plain = not any(name.startswith("torch.nn.modules.") for name in names)
        if (
            "torch" in modules
            and plain
            and modules <= {"torch", "collections", "fastcore", "numpy", "_codecs"}
        ):
            advice = "load them where it was trained (learn.load), then call hand_over or learn.export()"
            raise LearnerError(f"{file} holds weights, not a Learner: {advice}")
        raise LearnerError(f"{file} holds no fastai Learner: name a file that learn.export() wrote")
    writer = python_of(codes)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if writer and here not in writer.split(" or "):
        what = f"was written by Python {writer}, whose functions Python {here} cannot run"
        raise LearnerError(f"{file} {what}: {REMEDY}")


def unpack(file: Path) -> bytes:
    """Return the pickles in a file of torch.save or pickle.dump. Raises LearnerError."""
    data = file.read_bytes()
    if not data:
        raise LearnerError(f"{file} is empty: export or copy it again")
    if not data.startswith(b"PK"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if name is None:
                raise LearnerError(f"{file} is a zip archive, not a Learner: name a file of learn.export()")
            return archive.read(name)
    except (zipfile.BadZipFile, EOFError):
        raise LearnerError(f"{file} is truncated or damaged: copy it again") from None


def read_pickles(file: Path, data: bytes) -> tuple[set[str], list[bytes]]:
    """Return the classes and functions ("module name") that pickles name, and their own functions' code.

    torch's older format has several pickles, and then bytes of other kinds. Raises LearnerError.
    """
    names: set[str] = set()
    codes: list[bytes] = []
    stream, whole = io.BytesIO(data), 0
    try:
        while stream.tell() < len(data):
            expect_code = False
            for kind, value in texts(stream):
                if kind == "global":
                    names.add(str(value))
                elif expect_code and value != "CodeType":
                    codes.append(value if isinstance(value, bytes) else value.encode("latin1", "ignore"))
                    expect_code = False
                else:
                    expect_code = value == "CodeType"
            whole += 1
    except (ValueError, IndexError, KeyError, OverflowError):  # of the end, or of what follows the pickles
        if names and not whole:
            raise LearnerError(f"{file} is truncated or damaged: copy it again") from None
    if not whole:
        raise LearnerError(f"{file} is not a pickle: name a file that learn.export() wrote")
    return names, codes


def texts(stream: io.BytesIO) -> Iterator[tuple[str, str | bytes]]:
    """Yield the ("global", "module name") and ("text", text or bytes) of one pickle, in their order."""
    memo: dict[int, str | bytes | None] = {}
    last: str | bytes | None = None  # what was put on the stack
    before: list[str | bytes] = ["", ""]
    for opcode, arg, _ in pickletools.genops(stream):
        name = opcode.name
        if name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if arg is None else int(arg)] = last
            continue
        if name == "GLOBAL":
            last = None
            yield "global", str(arg)
            continue
        if name == "STACK_GLOBAL":
            last = None
            yield "global", f"{before[0]!s} {before[1]!s}"
            continue
        last = (
            memo.get(int(str(arg))) if name.endswith("GET") else arg if isinstance(arg, str | bytes) else None
        )
        if last is not None:
            before = [before[1], last]
            yield "text", last


def python_of(codes: list[bytes]) -> str:
    """Return the Python that compiled functions, such as "3.13"; empty if there are none."""
    if not codes:
        return ""
    starts = {byte for code in codes for byte in code[:START:2]}
    found = next((python for opcode, python in RESUME.items() if opcode in starts), "3.10 or older")
    if found == RESUME[151]:
        opcodes = {byte for code in codes for byte in code[::2]}
        if PRECALL in opcodes:
            return "3.11"
        return "3.12" if opcodes & {CALL, RETURN_CONST} else found  # without a call, both write the same
    return found
