"""What every part of deploy/ uses: an error for the user, text that is safe to print, a sample picture."""

import argparse
import io
import re
from typing import NoReturn

COLOURS = re.compile(r"\x1b\[[\d;]*m")
UNSAFE = re.compile(  # terminal escape sequences, characters that reverse the text's direction, surrogates
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


class CommandError(Exception):
    """An error that the user can fix: `code` is the command's exit code, the message is one sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def terminal_safe(text: object) -> str:
    """The text without colours and with control characters escaped (\\x1b); line breaks are kept.

    Logs and an endpoint's responses are untrusted: printed as they are, they could control the terminal.
    """
    plain = COLOURS.sub("", str(text).replace("\r\n", "\n"))
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), plain)


def sample_picture() -> bytes:
    """A PNG of 64 x 64 grey pixels, for a request whose answer does not matter."""
    from PIL import Image  # slow to import, and only few commands need it

    out = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(out, "PNG")
    return out.getvalue()
