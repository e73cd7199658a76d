import pytest

from learner_file import python_of

STORES_311 = b"\x97\x00|\x02|\x00_\x00\x00\x00\x00\x00\x00\x00\x00\x00d\x00S\x00"
STORES_312 = b"\x97\x00|\x02|\x00_\x00\x00\x00\x00\x00\x00\x00\x00\x00y\x00"
ADDS = b"\x97\x00|\x00d\x01z\x00\x00\x00S\x00"
CALLS_311 = b"\x97\x00t\x01" + bytes(10) + b"|\x00\xa6\x01\x00\x00\xab\x01" + bytes(8) + b"S\x00"
CALLS_312 = b"\x97\x00t\x01" + bytes(8) + b"|\x00\xab\x01" + bytes(6) + b"S\x00"


@pytest.mark.parametrize(
    ("codes", "python"),
    [
        ([], ""),
        ([STORES_311], "3.11 or 3.12"),
        ([ADDS], "3.11 or 3.12"),
        ([STORES_312], "3.12"),
        ([STORES_311, CALLS_311], "3.11"),
        ([ADDS, CALLS_312], "3.12"),
    ],
)
def test_which_python_compiled_functions_without_and_with_calls(codes, python):
    """`def f(self, x, y): self.a = y`, `def f(x): return x + 1`, `def f(x): return len(x)`, as compiled."""
    assert python_of(codes) == python
