from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnatuploader.workbook import moving


def rows(
    inserted: dict[int, int] | None = None, removed: tuple[int, ...] = (), last: int = 10
) -> moving.RowMap:
    return moving.RowMap(1, 2, last, inserted or {}, removed)


def test_rows_below_an_inserted_one_go_down() -> None:
    found = rows({3: 2})
    assert [found.new(row) for row in (1, 3, 4, 10)] == [1, 3, 6, 12]


def test_rows_below_one_taken_out_go_up() -> None:
    found = rows(removed=(3,))
    assert [found.new(row) for row in (2, 3, 4)] == [2, None, 3]


@given(st.dictionaries(st.integers(1, 10), st.integers(1, 4)), st.sets(st.integers(2, 10)))
def test_row_numbers_are_those_of_a_list_changed_the_same_way(
    inserted: dict[int, int], removed: set[int]
) -> None:
    plain: list[object] = []
    for row in range(1, 11):
        if row not in removed:
            plain.append(row)
        plain.extend(("new", row, at) for at in range(inserted.get(row, 0)))
    found = moving.RowMap(1, 2, 10, inserted, removed)
    for row in range(1, 11):
        assert found.new(row) == (plain.index(row) + 1 if row in plain else None)
        if inserted.get(row):
            assert found.first_inserted(row) == plain.index(("new", row, 0)) + 1
    assert found.new_last == len(plain)


@pytest.mark.parametrize(
    ("address", "moved"),
    [("B5", "B7"), ("$B$2", "$B$2"), ("A2:D10", "A2:D12"), ("A3:D5", "A3:D7"), ("5:6", "7:8"), ("A:A", "A:A"),
     ("D2:D1048576", "D2:D1048576"), ("A4:A4", "A6:A6")],
)  # fmt: skip
def test_addresses_follow_their_rows(address: str, moved: str) -> None:
    assert moving.move_address(address, rows({3: 2})) == moved


def test_a_range_over_the_whole_list_takes_in_rows_put_before_its_first_and_after_its_last() -> None:
    assert moving.move_address("E2:E10", rows({1: 2, 10: 3})) == "E2:E15"


def test_a_range_shrinks_by_the_rows_taken_out_and_is_gone_with_the_last() -> None:
    found = rows(removed=(4, 5))
    assert moving.move_addresses("A4:A6 B4:B5 C5 D3", found) == "A4:A4 D3"


@pytest.mark.parametrize(
    ("formula", "moved"),
    [
        ('IF(E5="A5",LOG10(5),$A$5)', 'IF(E7="A5",LOG10(5),$A$7)'),
        ("Files!E5+Other!E5+'Files'!E5", "Files!E7+Other!E5+'Files'!E7"),
        ("SUM(Q2:Q10)", "SUM(Q2:Q12)"),
        ("SUM(Q:Q)+SUM(5:5)", "SUM(Q:Q)+SUM(7:7)"),
        ("[1]Files!E5+'[1]Files'!E5", "[1]Files!E5+'[1]Files'!E5"),
        ("Table1[[#This Row],[E5]]+E5", "Table1[[#This Row],[E5]]+E7"),
        ("rate5*A5.x+E5*1.5E5", "rate5*A5.x+E7*1.5E5"),
        ("'it''s'!E5+files!E5", "'it''s'!E5+files!E7"),
        ("A4:INDEX(A:A,5)", "A6:INDEX(A:A,5)"),
    ],
)
def test_references_in_formulas_follow_their_rows_and_nothing_else_changes(formula: str, moved: str) -> None:
    assert moving.move_formula(formula, "Files", {"files": rows({3: 2})}) == moved


def test_a_reference_to_a_row_taken_out_says_so() -> None:
    assert moving.move_formula("A4+1", "Files", {"files": rows(removed=(4,))}) == "#REF!+1"


def test_rows_of_a_conditional_format_count_from_its_range() -> None:
    found = {"files": rows(removed=(2,))}
    assert moving.move_formula('AND($E2="x",$A$5=1)', "Files", found, top=(2, 2)) == 'AND($E2="x",$A$4=1)'


@pytest.mark.parametrize(
    ("formula", "filled"),
    [("A2&$B$2&C$2&$D2", "B5&$B$2&D$2&$D5"), ("SUM(A1:A2)", "SUM(B4:B5)"), ('"A2"&A2', '"A2"&B5')],
)
def test_a_shared_formula_reads_in_another_cell_as_if_filled_there(formula: str, filled: str) -> None:
    assert moving.offset_formula(formula, 3, 1) == filled


def test_a_formula_filled_above_the_first_row_refers_to_nothing() -> None:
    assert moving.offset_formula("A1", -1, 0) == "#REF!"
