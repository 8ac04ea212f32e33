"""Messages for people: one line, whatever stands in a file."""

import pytest

from diffusers_erase.errors import ErasureError, shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("café 🚗", "café 🚗"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[2J\u202e\x00", r"\x1b[2J\u202e\x00"),
        ("\u2028", r"\u2028"),
        (3, "3"),
        ("x" * 600, "x" * 500 + " … (600 characters)"),
    ],
)
def test_shown_is_one_printable_line(text, line):
    assert shown(text) == line


def test_erasure_error_has_one_short_printable_line():
    message = str(ErasureError("'\x1b[2J\n' holds " + "x" * 9_999))
    assert message.startswith(r"'\x1b[2J\n' holds xxx")
    assert message.isprintable()
    assert len(message) < 2_100
