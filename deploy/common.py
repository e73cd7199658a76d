"""What every part of deploy/ uses: an error for the user, text that is safe to print, a sample picture."""

import io
import re


class CommandError(Exception):
    """The end, with an exit code and one sentence for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


COLOURS = re.compile(r"\x1b\[[\d;]*m")
UNSAFE = re.compile(  # commands to a terminal, what turns the direction of text, and halves of characters
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def terminal_safe(text: object) -> str:
    """The text without colours; what is not for reading is written out, as \\x1b is. Lines stay lines."""
    plain = COLOURS.sub("", str(text).replace("\r\n", "\n"))
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), plain)


def sample_image() -> bytes:
    """A small PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(out, "PNG")
    return out.getvalue()
