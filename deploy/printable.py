"""Text from outside, such as logs and answers, made safe for the terminal that shows it."""

import re

COLOURS = re.compile(r"\x1b\[[\d;]*m")
UNSAFE = re.compile(  # commands to a terminal, what turns the direction of text, and halves of characters
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    """The text without colours; what is not for reading is written out, as \\x1b is. Lines stay lines."""
    plain = COLOURS.sub("", str(text).replace("\r\n", "\n"))
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), plain)
