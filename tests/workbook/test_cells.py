from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xnatuploader import records
from xnatuploader.workbook import cells

any_text = st.text(st.characters(codec=None, categories=None), max_size=60) | st.text(
    "\\xu05CFDabc_4180\x0b\udc80\n \t", max_size=30
)


@given(any_text)
@example("\\x0B")
@example("\\x5C\\x0B")
@example("_x0041_")
@example("_x005F_x0041_")
@example("\\\x0b")
@example("a\udcffb.dcm")
@example("\r\n")
def test_any_text_comes_back_from_the_xml_of_its_cell(text: str) -> None:
    element = ElementTree.fromstring(cells.element(text).encode())
    content = element.text or ""
    escaped = content.replace("&", "&amp;").replace("<", "&lt;")
    assert cells.from_xml(escaped) == text


@given(any_text)
def test_what_is_shown_holds_nothing_that_excel_would_take_for_its_own_escape(text: str) -> None:
    shown = cells.shown(text)
    assert cells._EXCELS_ESCAPE.search(shown) is None
    assert cells.unshown(shown) == text
    shown.encode()


def test_a_control_character_is_seen_in_the_cell() -> None:
    assert cells.to_xml("Chest\x0bCT") == "Chest\\x0BCT"


def test_a_backslash_between_values_stays_as_it_is() -> None:
    assert cells.to_xml("Chest\\Abdo\\x") == "Chest\\Abdo\\x"


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        ("a_x000B_b", "a\x0bb"),
        ("_x005F_x0041_", "_x0041_"),
        ("_x0041_", "_x0041_"),
        ("a_x000D_&#10;b", "a\r\nb"),
    ],
)
def test_the_escapes_that_excel_itself_writes_are_understood(stored: str, meant: str) -> None:
    assert cells.from_xml(stored) == meant


@pytest.mark.parametrize("text", ["x" * 40_000, "😀" * 20_000, "\x01" * 30_000, "x" * 32_700 + "\x01" * 30])
def test_a_longer_text_than_excel_holds_is_cut_and_says_so(text: str) -> None:
    content = cells.to_xml(text)
    assert len(content.encode("utf-16-le")) // 2 <= cells.MAX_TEXT
    assert content.endswith(f"[cut, {len(text)} characters in all]")
    assert not cells._BROKEN_TAIL.search(content.split(" ... [cut")[0])


def test_a_text_of_just_the_allowed_length_is_not_cut() -> None:
    text = "x" * cells.MAX_TEXT
    assert cells.to_xml(text) == text


@pytest.mark.parametrize(
    ("stored", "seen"),
    [("342", "342"), ("342.0", "342"), ("1E3", "1000"), ("0.1", "0.1"), ("3.4000000000000004", "3.4"),
     ("1.2345678901234567E+20", "1.23456789012346e+20"), ("-5", "-5"), ("text", "text"), ("nan", "nan")],
)  # fmt: skip
def test_numbers_read_as_excel_shows_them(stored: str, seen: str) -> None:
    assert cells.number_text(stored) == seen


@pytest.mark.parametrize(
    ("serial", "from_1904", "day"),
    [("43902", False, "2020-03-12"), ("43902.5", False, "2020-03-12 12:00:00"), ("42440", True, "2020-03-12"),
     ("1", False, "1900-01-01"), ("61", False, "1900-03-01")],
)  # fmt: skip
def test_date_numbers_become_days(serial: str, from_1904: bool, day: str) -> None:
    assert cells.date_text(serial, from_1904) == day


def test_a_number_beyond_all_dates_is_no_date() -> None:
    assert cells.date_text("1e12", False) == "1000000000000"


@given(st.integers(1, 16_384))
def test_column_letters_and_numbers_are_each_others_inverse(number: int) -> None:
    assert cells.column_number(records.column_letters(number)) == number


def test_column_letters_are_excels() -> None:
    assert [records.column_letters(number) for number in (1, 26, 27, 702, 703, 16_384)] == [
        "A", "Z", "AA", "ZZ", "AAA", "XFD",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["Y", "y", " yes ", "TRUE", "true", "1", "x", "X"])
def test_these_mean_yes(text: str) -> None:
    assert records.is_yes(text)


@pytest.mark.parametrize("text", ["", "N", "no", "0", "FALSE", "yy", "maybe", "ja"])
def test_anything_else_means_no(text: str) -> None:
    assert not records.is_yes(text)
