"""Calls about what was just made, of which AWS may not know yet."""

import re
import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from aws import code_of, is_there_already

CONSISTENT = (1, 2, 4, 8, 15, 30)  # seconds between tries; a new role needs some of them to be known
NOT_YET = "Could not (find|access)|assume"  # a role that is unknown cannot be assumed


def patiently(call: Callable, **request: Any) -> dict | None:
    """The answer of a call that is repeated while AWS does not know what it is about.

    None where the call made its thing already, as after a repeated request.
    """
    for wait in (*CONSISTENT, None):
        try:
            return call(**request)
        except ClientError as error:
            if is_there_already(error):
                return None
            if wait is None or not is_not_known_yet(error):
                raise
            time.sleep(wait)
    raise AssertionError


def is_not_known_yet(error: ClientError) -> bool:
    """Whether AWS calls a request invalid that will soon be valid."""
    invalid = code_of(error) in ("ValidationException", "InvalidInputException")
    return invalid and bool(re.search(NOT_YET, str(error), re.IGNORECASE))
