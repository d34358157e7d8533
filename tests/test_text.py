"""The text on terminals and pages."""

from __future__ import annotations

import unicodedata

from robust_nas.core.text import visible


def test_what_acts_becomes_an_escape_and_all_else_stays() -> None:
    marks = {chr(code) for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    assert all(unicodedata.bidirectional(mark) not in ("", "L", "R") or mark in "\u200e\u200f" for mark in marks)
    for character in map(chr, (*range(0x3000), *range(0xD7F0, 0xE010), 0x72D7, 0x1F600)):
        acts = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in marks
        assert (visible(character, keep="") != character) == acts, ascii(character)
        assert visible(character, keep="").isprintable() or not acts


def test_bytes_of_a_name_are_shown_as_bytes_and_as_letters_where_they_are_some() -> None:
    name = b"caf\xc3\xa9 \xff".decode("ascii", "surrogateescape")
    assert visible(name) == "caf\u00e9 \\xff"
    assert visible("a\nb\t\x1b[31m") == "a\nb\t\\x1b[31m"
