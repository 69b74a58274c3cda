"""Dummies, shifted dates, and text without the words that identify the patient."""

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.valuerep import validate_value

from xnatuploader.deidentify import values


@pytest.mark.parametrize(
    ("text", "vr", "days", "expected"),
    [
        ("20200312", "DA", -1, "20200311"),
        ("20200301", "DA", -1, "20200229"),
        ("20200312 ", "DA", -366, "20190312"),
        ("2020.03.12", "DA", -1, "20200311"),
        ("20200312\\20200313", "DA", -1, "20200311\\20200312"),
        ("20200312\\", "DA", -1, "20200311\\"),
        ("20200312-20200315", "DA", -1, "20200311-20200314"),
        ("", "DA", -1, ""),
        ("20200312101112.123456+0100", "DT", -1, "20200311101112.123456+0100"),
        ("20200312", "DT", -1, "20200311"),
        ("202003121011", "DT", -1, "202003111011"),
        ("202003", "DT", -31, "202002"),
        ("2020", "DT", -366, "2019"),
        ("2020+0100", "DT", -366, "2019+0100"),
    ],
)
def test_dates_are_shifted(text, vr, days, expected):
    assert values.shift_dates(text, vr, days) == expected


@pytest.mark.parametrize(
    "text", ["about March", "20201345", "2020", "20200312101112", "12.03.2020", "99999999", "Doe^John"]
)
def test_what_is_no_date_does_not_stay(text):
    assert values.shift_dates(text, "DA", -1) == "19000101"
    assert values.shift_dates("Doe^John", "DT", -1) == "19000101000000"


@given(st.dates(datetime.date(1900, 1, 1)), st.integers(-3650, -30))
def test_shifted_dates_keep_their_distance(date, days):
    one = values.shift_dates(date.strftime("%Y%m%d"), "DA", days)

    assert len(one) == 8
    assert datetime.datetime.strptime(one, "%Y%m%d").date() - date == datetime.timedelta(days=days)


@pytest.mark.slow
@given(st.text(max_size=20), st.sampled_from(["DA", "DT"]))
def test_no_text_makes_a_shift_raise_or_passes_it_unshifted(text, vr):
    assert re.fullmatch(r"[\d.+\-\\]*", values.shift_dates(text, vr, -100))


@pytest.mark.parametrize(
    "vr", ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"]
)
def test_dummies_are_valid_for_their_vr(vr):
    validate_value(vr, values.dummy(vr, 10).decode(), config.RAISE)


def test_binary_dummies_are_zeros_of_bounded_length():
    assert values.dummy("US", 4) == bytes(4)
    assert values.dummy("OB", 0) == bytes(2)
    assert len(values.dummy("OB", 10**9)) == 1024


WORDS = frozenset(values.name_words("M\u00fcller-L\u00fcdenscheidt^Hans Peter^^Dr."))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CT Abdomen", "CT Abdomen"),
        ("CT MUELLER Abdomen", "CT Abdomen"),
        ("Sch\u00e4del m\u00fcller", "Sch\u00e4del"),
        ("Muller, Hans: Knie", "Knie"),
        ("MuellerKnie", ""),
        ("Knie (Hans)", "Knie"),
        ("Knie 12.03.1970", "Knie"),
        ("Knie 1970-03-12 links", "Knie links"),
        ("Knie 19700312", "Knie"),
        ("Knie 3mm T2", "Knie 3mm T2"),
        ("Auftrag 4711 0815", "Auftrag 4711 0815"),
        ("Fall 123456", "Fall"),
        ("ask Dr. Smith", "ask"),
        ("Herr Schulze Thorax", "Thorax"),
        ("mail doe@example.org now", "mail now"),
        ("see https://pacs.example/doe?x=1 there", "see there"),
        ("Tel 040 123 4567", "Tel"),
        ("ID A-77 Knie", "ID Knie"),
        ("Hand", "Hand"),
    ],
)
def test_text_loses_what_identifies(text, expected):
    assert values.scrub(text, WORDS, ("A-77",)) == expected


def test_text_without_anything_to_clean_is_the_same_object_of_text():
    for text in ("  two  blanks stay ", "a (b) [c]", ""):
        assert values.scrub(text, WORDS, ()) == text


@given(st.text(max_size=60))
def test_no_word_of_the_name_survives(text):
    cleaned = values.scrub(f"{text} M\u00fcller {text}", WORDS, ())

    assert "muller" not in values.fold(cleaned)


@pytest.mark.parametrize(
    ("value", "vr", "expected"), [(b"abc", "LO", b"abc "), (b"1.2", "UI", b"1.2\0"), (b"ab", "LO", b"ab")]
)
def test_values_are_padded_to_even_length(value, vr, expected):
    assert values.padded(value, vr) == expected
