"""Workbooks as people, Excel, LibreOffice and 1.x of this program leave them."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import openpyxl
import pytest
from openpyxl.chart import BarChart, Reference
from openpyxl.comments import Comment
from openpyxl.formatting.rule import CellIsRule, FormulaRule
from openpyxl.styles import PatternFill
from openpyxl.worksheet.datavalidation import DataValidation
from openpyxl.worksheet.table import Table

from tests.helpers import builders
from tests.helpers import workbook_samples as samples
from tests.helpers.runs import edit
from xnatuploader import errors, records
from xnatuploader.workbook import book

Status = records.Status
CONTENT = "application/vnd.openxmlformats-officedocument.spreadsheetml"
YELLOW = PatternFill("solid", fgColor="FFFF00")
LAST, NOTES, SUM = (records.column_letters(samples.COLUMNS + further) for further in range(3))
"""The sheet's last column, and the two of their own that people add in `used`."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "files.xlsx"


def used(path: Path) -> list[records.Row]:
    """Make a workbook as a person leaves it who works with it: on the row of file 4 (row 4), among others."""
    rows = [samples.make_row(number) for number in (0, 2, 4, 6, 8)]
    samples.scanned(path, rows)
    edit(_work_with_it, path)
    return rows


def _work_with_it(workbook: openpyxl.Workbook) -> None:
    page = workbook["Files"]
    notes = page.max_column + 1
    page.cell(1, notes, "Notes")
    page.cell(1, notes + 1, "Sum")
    for row in range(2, 7):
        page.cell(row, notes + 1, f'=IF($E{row}="success",N{row},0)')
    page.cell(4, notes, "consent withdrawn")
    page.cell(4, 7).fill = YELLOW
    page.row_dimensions[4].height = 40
    page.row_dimensions[5].hidden = True
    page.cell(4, 8).comment = Comment("ask Ann", "bob")
    page.cell(9, 1, "Total")
    page.cell(9, 13, f"=SUM({SUM}2:{SUM}6)+Summary!A1")
    page.merge_cells("C9:D9")
    page.conditional_formatting.add("G2:G6", FormulaRule(formula=['$G2="0002"'], fill=YELLOW))
    page.conditional_formatting.add("G4", CellIsRule("equal", ["$G$4"], fill=YELLOW))
    choice = DataValidation("list", formula1='"a,b"')
    choice.add(f"{NOTES}4:{NOTES}6")
    page.add_data_validation(choice)
    page.cell(4, 2).hyperlink = "https://example.org/4"
    page.print_title_rows = "1:1"
    summary = workbook.create_sheet("Summary")
    summary["A1"] = '=COUNTIF(Files!E2:E6,"success")+Files!G4'
    chart = BarChart()
    chart.add_data(Reference(page, min_col=14, min_row=2, max_row=6))
    summary.add_chart(chart, "C3")
    for number in range(3):
        summary.append([number, number * 2])
    workbook.defined_names["fourth"] = openpyxl.workbook.defined_name.DefinedName(
        "fourth", attr_text="Files!$G$4"
    )


def rows_of(path: Path) -> dict[str, int]:
    return {row.file[-8:-4]: row.number for row in book.Book.open(path).rows()}


def rescanned(path: Path) -> openpyxl.Workbook:
    """Re-scan with two new files, whose paths lie before that of file 4, and return the workbook."""
    rows = used(path)
    samples.rescan(path, [rows[0], samples.make_row(1), rows[1], samples.make_row(3), *rows[2:]])
    return samples.loaded(path)


def test_new_rows_follow_everything_that_the_sheet_holds(path: Path) -> None:
    rescanned(path)
    assert rows_of(path) == {"0000": 2, "0002": 3, "0004": 4, "0006": 5, "0008": 6, "0001": 10, "0003": 11}


def test_what_people_made_stays_byte_for_byte_when_files_come_and_go(path: Path) -> None:
    rows = used(path)
    before, rows_before = samples.parts(path), samples.rows_xml(path, "Files")
    samples.rescan(path, [rows[0], samples.make_row(1), rows[3], samples.make_row(3), rows[4]])
    after = samples.parts(path)
    part, names = samples.sheet_part(path, "Files"), "xl/workbook.xml"
    assert {name for name in after if before.get(name) != after[name]} == {part, names}
    assert before.keys() == after.keys()
    assert samples.rows_xml(path, "Files")[: len(rows_before)] == rows_before
    tails = [content[part].decode().partition("</sheetData>")[2] for content in (before, after)]
    assert tails[1] == tails[0].replace(f"A1:{LAST}6", f"A1:{LAST}11")
    old, new = (f"$A$1:${LAST}${row}".encode() for row in (6, 11))
    assert after[names] == before[names].replace(old, new)


def test_notes_fills_heights_and_hidden_rows_stay_with_their_file(path: Path) -> None:
    page = rescanned(path)["Files"]
    notes = [page[f"{NOTES}{row}"].value for row in range(1, 12)]
    assert notes == ["Notes", None, None, "consent withdrawn", *[None] * 7]
    assert page.cell(4, 7).fill.fgColor.rgb == "00FFFF00"
    assert page.cell(10, 7).fill.fill_type is None
    assert page.row_dimensions[4].height == 40
    assert page.row_dimensions[5].hidden
    assert page["H4"].comment.text == "ask Ann"
    assert page["B4"].hyperlink.target == "https://example.org/4"


def test_formulas_names_and_charts_still_mean_the_rows_that_they_meant(path: Path) -> None:
    workbook = rescanned(path)
    page = workbook["Files"]
    assert page[f"{SUM}4"].value == '=IF($E4="success",N4,0)'
    assert page["M9"].value == f"=SUM({SUM}2:{SUM}6)+Summary!A1"
    assert workbook["Summary"]["A1"].value == '=COUNTIF(Files!E2:E6,"success")+Files!G4'
    assert workbook.defined_names["fourth"].attr_text == "Files!$G$4"
    assert page.print_title_rows == "$1:$1"
    chart = next(data.decode() for name, data in samples.parts(path).items() if "charts/chart" in name)
    assert "'Files'!$N$2:$N$6" in chart


def test_the_filter_the_drop_down_and_the_colours_reach_the_new_rows(path: Path) -> None:
    page = rescanned(path)["Files"]
    assert page.auto_filter.ref == f"A1:{LAST}11"
    assert f"'Files'!$A$1:${LAST}$11</definedName>".encode() in samples.parts(path)["xl/workbook.xml"]
    assert page.dimensions == f"A1:{SUM}11"
    choices = {str(rule.sqref) for rule in page.data_validations.dataValidation}
    assert choices == {"D2:D1048576", f"{NOTES}4:{NOTES}6"}
    ranges = {str(found.sqref) for found in page.conditional_formatting}
    assert ranges == {"E2:E1048576", "G2:G6", "G4"}


def test_outcomes_leave_everything_that_people_made_byte_for_byte(path: Path) -> None:
    rows = used(path)
    before = samples.parts(path)
    book.write_outcomes(
        path, {row.file: records.Outcome(row.file, Status.SUCCESS, "ok", "md5") for row in rows}, []
    )
    after = samples.parts(path)
    part = samples.sheet_part(path, "Files")
    assert {name for name in after if before.get(name) != after[name]} == {part}
    cell = re.compile(rb'<c r="[EFO]\d+".*?(?:/>|</c>)')
    old = re.sub(rb'<c r="[EFO]\d+"[^>]*/>', b"", before[part])
    assert cell.sub(b"", after[part]) == cell.sub(b"", old)


def test_a_cell_that_is_written_keeps_its_style(path: Path) -> None:
    rows = samples.make_rows(3)
    samples.scanned(path, rows)

    def colour(workbook: openpyxl.Workbook) -> None:
        workbook["Files"]["E3"].fill = YELLOW
        workbook["Files"]["G3"].fill = YELLOW

    edit(colour, path)
    book.write_outcomes(path, {rows[1].file: records.Outcome(rows[1].file, Status.SUCCESS, "ok")}, [])
    found = list(book.Book.open(path).rows())
    samples.rescan(path, [found[0], dataclasses.replace(found[1], subject="0002"), found[2]])
    page = samples.loaded(path)["Files"]
    assert (page["E3"].value, page["G3"].value) == ("success", "0002")
    assert page["E3"].fill.fgColor.rgb == page["G3"].fill.fgColor.rgb == "00FFFF00"
    assert page["F3"].number_format == "@"


def test_a_filter_that_people_set_elsewhere_stays(path: Path) -> None:
    samples.scanned(path, samples.make_rows(2))

    def elsewhere(workbook: openpyxl.Workbook) -> None:
        workbook["Files"]["AH1"], workbook["Files"]["AI1"] = "Scanner", "Room"
        workbook["Files"].auto_filter.ref = "AH1:AI3"

    edit(elsewhere, path)
    samples.rescan(path, samples.make_rows(4))
    assert samples.loaded(path)["Files"].auto_filter.ref == "AH1:AI3"
    assert b"$AH$1:$AI$3<" in samples.parts(path)["xl/workbook.xml"]


def test_a_drop_down_that_libreoffice_has_cut_serves_the_new_rows_again(path: Path, tmp_path: Path) -> None:
    samples.scanned(path, samples.make_rows(3))
    saved = samples.through_libreoffice(path, tmp_path / "lo")
    cut = {str(rule.sqref) for rule in samples.loaded(saved)["Files"].data_validations.dataValidation}
    assert cut != {"D2:D1048576"}
    samples.rescan(saved, samples.make_rows(1100))
    page = samples.loaded(saved)["Files"]
    assert {str(rule.sqref) for rule in page.data_validations.dataValidation} == {"D2:D1048576"}
    assert page.max_row == 1101


def test_drop_downs_that_reach_far_enough_or_are_of_others_stay(path: Path) -> None:
    samples.scanned(path, samples.make_rows(2))
    part = samples.sheet_part(path, "Files")
    other = '<dataValidation type="list" sqref="AD2:AD3"><formula1>"a,b"</formula1></dataValidation>'
    samples.edit_parts(
        path,
        {
            part: lambda text: text.replace('sqref="D2:D1048576"', 'sqref="D2:D3 D9:D900"').replace(
                "</dataValidations>", f"{other}</dataValidations>"
            )
        },
    )
    samples.rescan(path, samples.make_rows(4))
    text = samples.parts(path)[part].decode()
    assert 'sqref="D2:D1048576 D9:D900"' in text
    assert other in text


def test_what_this_program_does_not_know_stays_too(path: Path) -> None:
    rows = used(path)
    part = samples.sheet_part(path, "Files")
    scenario = '<scenarios><scenario name="x"/></scenarios>'
    samples.edit_parts(
        path,
        {part: lambda text: text.replace("<pageMargins", f"{scenario}{NEWER}<pageMargins", 1)},
    )
    samples.rescan(path, [rows[0], samples.make_row(1), *rows[1:]])
    text = samples.parts(path)[part].decode()
    assert scenario in text
    assert NEWER in text


NEWER = (
    '<extLst><ext xmlns:x14="http://schemas.microsoft.com/office/spreadsheetml/2009/9/main" uri="{78C0D931}">'
    '<x14:conditionalFormattings><x14:conditionalFormatting xmlns:xm="http://schemas.microsoft.com/office/excel/2006/main">'
    '<x14:cfRule type="expression" priority="1" id="{1}"><xm:f>Summary!$A$1=$G4</xm:f></x14:cfRule>'
    "<xm:sqref>G4:G5</xm:sqref></x14:conditionalFormatting></x14:conditionalFormattings></ext></extLst>"
)


def with_tables(path: Path, *ranges: str) -> list[records.Row]:
    """Make a list of two rows in which a person made tables of these ranges; return four rows for the next scan."""
    rows = samples.make_rows(4)
    samples.scanned(path, [rows[0], rows[3]])

    def as_tables(workbook: openpyxl.Workbook) -> None:
        page = workbook["Files"]
        page.auto_filter.ref = None
        page["AH1"], page["AI1"] = "Scanner", "Room"
        for number, where in enumerate(ranges):
            page.add_table(Table(displayName=f"List{number}", ref=where))

    edit(as_tables, path)
    return rows


def tables(path: Path) -> list[str]:
    return [table.ref for table in samples.loaded(path)["Files"].tables.values()]


def test_a_list_in_a_table_grows_with_its_table(path: Path) -> None:
    samples.rescan(path, with_tables(path, "A1:F3"))
    assert tables(path) == ["A1:F5"]


def test_a_table_that_is_not_the_list_stays_as_it_is(path: Path) -> None:
    samples.rescan(path, with_tables(path, "AH1:AI3", "A2:F3"))
    assert tables(path) == ["AH1:AI3", "A2:F3"]


def test_a_table_does_not_swallow_what_people_wrote_below_it(path: Path) -> None:
    rows = with_tables(path, "A1:F3")
    edit(lambda workbook: workbook["Files"].cell(6, 13, "=SUM(M2:M3)"), path)
    samples.rescan(path, rows)
    assert tables(path) == ["A1:F3"]


def test_a_table_with_a_row_of_totals_keeps_it(path: Path) -> None:
    rows = with_tables(path, "A1:F4")
    part = next(name for name in samples.parts(path) if name.startswith("xl/tables/"))
    samples.edit_parts(
        path, {part: lambda text: text.replace('ref="A1:F4"', 'ref="A1:F4" totalsRowCount="1"', 1)}
    )
    edit(lambda workbook: workbook["Files"].cell(4, 1, "Total"), path)
    samples.rescan(path, rows)
    assert tables(path) == ["A1:F4"]


SHARED = (
    ('<c r="AJ2"><f t="shared" ref="AJ2:AJ4" si="0">N2+N3+$N$3</f><v>1</v></c>', 2),
    ('<c r="AJ3"><f t="shared" si="0"/><v>1</v></c>', 3),
    ('<c r="AJ4"><f t="shared" si="0"/><v>1</v></c>', 4),
)
CHAIN = '<calcChain xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><c r="AJ2" i="2"/></calcChain>'


def with_shared_formula(path: Path, chain: str = CHAIN) -> list[records.Row]:
    """Make a workbook with a formula filled down as Excel stores it, and Excel's list of formula cells."""
    rows = samples.make_rows(3)
    samples.scanned(path, rows)

    def fill(text: str) -> str:
        for cell, row in SHARED:
            text = re.sub(rf'(<row r="{row}".*?)</row>', rf"\g<1>{cell}</row>", text)
        return text

    override = f'<Override PartName="/xl/calcChain.xml" ContentType="{CONTENT}.calcChain+xml"/>'
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/calcChain"
    relation = f'<Relationship Id="rId77" Type="{kind}" Target="calcChain.xml"/>'
    samples.edit_parts(
        path,
        {
            samples.sheet_part(path, "Files"): fill,
            "xl/calcChain.xml": chain,
            "[Content_Types].xml": lambda text: text.replace("</Types>", override + "</Types>"),
            "xl/_rels/workbook.xml.rels": lambda text: text.replace("</Relationships>", relation + "</Relationships>"),
        },
    )  # fmt: skip
    return rows


def test_formulas_that_cells_share_and_excels_list_of_them_stay_when_rows_are_added(path: Path) -> None:
    rows = with_shared_formula(path)
    before = samples.parts(path)
    samples.rescan(path, [rows[0], samples.make_row(9), rows[1], rows[2]])
    after = samples.parts(path)
    for cell, _ in SHARED:
        assert cell in after[samples.sheet_part(path, "Files")].decode()
    assert after["xl/calcChain.xml"] == before["xl/calcChain.xml"]
    page = samples.loaded(path)["Files"]
    assert [page.cell(row, 36).value for row in range(2, 6)] == [
        "=N2+N3+$N$3",
        "=N3+N4+$N$3",
        "=N4+N5+$N$3",
        None,
    ]


def test_excels_list_of_formulas_stays_when_only_outcomes_are_written(path: Path) -> None:
    rows = with_shared_formula(path)
    before = samples.parts(path)
    book.write_outcomes(path, {rows[0].file: records.Outcome(rows[0].file, Status.SUCCESS)}, [])
    after = samples.parts(path)
    assert after["xl/calcChain.xml"] == before["xl/calcChain.xml"]
    page = samples.loaded(path)["Files"]
    assert [page.cell(row, 36).value for row in range(2, 5)] == ["=N2+N3+$N$3", "=N3+N4+$N$3", "=N4+N5+$N$3"]


def test_writing_over_a_formula_drops_excels_list_of_them(path: Path) -> None:
    rows = with_shared_formula(path, CHAIN.replace("AJ2", "E2"))
    book.write_outcomes(path, {rows[0].file: records.Outcome(rows[0].file, Status.SUCCESS)}, [])
    assert "xl/calcChain.xml" not in samples.parts(path)


@pytest.mark.parametrize(
    ("formula", "own"),
    [
        ('B2&amp;"x"', '=B3&"x"'),
        ('IF(E2="A2",$A$2&amp;A$2,SUM(A1:A2))', '=IF(E3="A2",$A$2&A$2,SUM(A2:A3))'),
        ("'it''s'!B2", "='it''s'!B3"),
        ("Table1[[#This Row],[E2]]&amp;B2", "=Table1[[#This Row],[E2]]&B3"),
    ],
)
def test_cells_that_shared_an_overwritten_formula_get_their_own(path: Path, formula: str, own: str) -> None:
    rows = samples.make_rows(3)
    samples.scanned(path, rows)

    def fill(text: str) -> str:
        for row, element in ((2, f't="shared" ref="F2:F4" si="3">{formula}</f>'), (3, 't="shared" si="3"/>')):
            cell = f'<c r="F{row}" t="str"><f {element}<v>old</v></c>'
            text = text.replace(f'<c r="G{row}"', f'{cell}<c r="G{row}"')
        return text

    samples.edit_parts(path, {samples.sheet_part(path, "Files"): fill})
    book.write_outcomes(path, {rows[0].file: records.Outcome(rows[0].file, Status.FAILED, "new")}, [])
    page = samples.loaded(path)["Files"]
    assert (page["F2"].value, page["F3"].value) == ("new", own)


# Other programs' ways of writing the same


def read_like(path: Path, rows: Sequence[records.Row]) -> None:
    """Check that the list reads as `rows` and that both ways of writing work on it."""
    found = list(book.Book.open(path).rows())
    assert [samples.bare(row) for row in found] == [samples.bare(row) for row in rows]
    outcomes = {rows[1].file: records.Outcome(rows[1].file, Status.SUCCESS, "ok", "abc")}
    assert book.write_outcomes(path, outcomes, [samples.make_session(done=1)]) == frozenset(outcomes)
    new = samples.make_row(77)
    samples.rescan(path, [rows[0], new, *list(book.Book.open(path).rows())[1:]])
    found = list(book.Book.open(path).rows())
    assert [row.file for row in found] == [row.file for row in (*rows, new)]
    assert found[1].status == Status.SUCCESS
    assert samples.loaded(path)["Files"].max_row == len(found) + 1
    assert book.Book.open(path).folder == "/data/export"


def test_a_workbook_saved_by_openpyxl_goes_on(path: Path) -> None:
    rows = [
        *samples.make_rows(4),
        samples.make_row(9, file="a\udcff_x0041_\x0b.dcm", study_description="=1+1"),
    ]
    samples.scanned(path, rows)
    edit(lambda workbook: None, path)
    read_like(path, rows)


@pytest.mark.slow
def test_a_workbook_saved_by_libreoffice_goes_on(path: Path, tmp_path: Path) -> None:
    rows = [
        *samples.make_rows(4),
        samples.make_row(9, file=" a\udcff_x0041_\x0b\n.dcm", study_description="=1+1"),
    ]
    samples.scanned(path, rows)
    saved = samples.through_libreoffice(path, tmp_path / "lo")
    read_like(saved, rows)
    assert [line.cells for line in book.Book.open(saved).configuration()] == [
        row for row in samples.LAYOUT if row
    ]


@pytest.mark.slow
def test_libreoffice_opens_what_a_scan_and_an_upload_left_in_a_used_workbook(
    path: Path, tmp_path: Path
) -> None:
    rescanned(path)
    name = samples.make_row(4).file
    book.write_outcomes(path, {name: records.Outcome(name, Status.SUCCESS)}, [])
    saved = samples.through_libreoffice(path, tmp_path / "lo")
    page = samples.loaded(saved)["Files"]
    assert page[f"{NOTES}4"].value == "consent withdrawn"
    assert page["H4"].comment is not None
    before, after = (
        [samples.bare(dataclasses.replace(row, values={})) for row in book.Book.open(place).rows()]
        for place in (path, saved)
    )
    assert after == before


def _shared(text: str) -> tuple[str, str]:
    """Return a sheet and a string table as Excel saves what was written as inline text."""
    strings: dict[str, int] = {}

    def point(match: re.Match[str]) -> str:
        place = strings.setdefault(match.group(2), len(strings))
        return f'{match.group(1)} t="s"><v>{place}</v></c>'

    text = re.sub(
        r'(<c r="[A-Z]+\d+" s="\d+") t="inlineStr"><is>(.*?)</is></c>', point, text, flags=re.DOTALL
    )
    items = "".join(f"<si>{item}</si>" for item in strings)
    table = (
        f'<sst xmlns="{samples.MAIN[1:-1]}" count="{len(strings)}" uniqueCount="{len(strings)}">{items}</sst>'
    )
    return text, table


def test_an_open_workbook_is_read_right_after_somebody_saved_it(path: Path) -> None:
    samples.scanned(path)
    edit(lambda workbook: None, path)  # openpyxl saves texts as Excel does, in a list of their own
    opened = book.Book.open(path)
    assert [row.subject for row in opened.rows()] == ["0001"] * 5

    def change(workbook: openpyxl.Workbook) -> None:
        workbook.create_sheet("First", 0)["A1"] = "shifts the list of texts"
        workbook["Sessions"]["A2"] = "N"

    edit(change, path)
    assert [row.subject for row in opened.rows()] == ["0001"] * 5
    [session] = opened.sessions()
    assert (session.session_label, session.upload) == ("0001_20200312_CT", False)
    assert len(list(opened.columns("File"))) == 5
    assert opened.configuration()[3].cells[0] == "Mappings"


def test_an_open_workbook_that_could_not_be_read_once_is_read_as_it_is_then(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.scanned(path)
    edit(lambda workbook: None, path)
    opened = book.Book.open(path)
    edit(lambda workbook: workbook.create_sheet("First", 0).append(["shifts the list of texts"]), path)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)  # Excel is saving it
        with pytest.raises(errors.SpreadsheetError):
            opened.sessions()
    assert [row.subject for row in opened.rows()] == ["0001"] * 5


def test_a_workbook_with_shared_strings_as_excel_saves_it_goes_on(path: Path) -> None:
    rows = [*samples.make_rows(4), samples.make_row(9, file="é&<_x0041_>\x0b.dcm")]
    samples.scanned(path, rows)
    part = samples.sheet_part(path, "Files")
    text, table = _shared(samples.parts(path)[part].decode())
    override = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{CONTENT}.sharedStrings+xml"/>'
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/sharedStrings"
    relation = f'<Relationship Id="rId78" Type="{kind}" Target="sharedStrings.xml"/>'
    samples.edit_parts(
        path,
        {
            part: text,
            "xl/sharedStrings.xml": table,
            "[Content_Types].xml": lambda text: text.replace("</Types>", override + "</Types>"),
            "xl/_rels/workbook.xml.rels": lambda text: text.replace("</Relationships>", relation + "</Relationships>"),
        },
    )  # fmt: skip
    read_like(path, rows)
    assert samples.parts(path)["xl/sharedStrings.xml"].decode() == table


def _prefixed(text: str) -> str:
    text = re.sub(r"<(/?)(?=[a-zA-Z])", r"<\1x:", text)
    return text.replace("xmlns=", "xmlns:x=", 1)


def _without_names(text: str) -> str:
    text = re.sub(r'<row r="\d+"', "<row", text)
    # Cells without a name stand side by side, so that each column has to be there.
    return re.sub(r"<row(?: [^>]*)?>.*?</row>", _fill_row, text, flags=re.DOTALL)


def _fill_row(match: re.Match[str]) -> str:
    row, filled, column = match.group(), [], 0
    for name, cell in re.findall(r'(?s)<c r="([A-Z]+)\d+"(.*?(?:/>|</c>))', row):
        number = openpyxl.utils.column_index_from_string(name)
        filled.extend(["<c/>"] * (number - column - 1))
        filled.append(f"<c{cell}")
        column = number
    return f"<row>{''.join(filled)}</row>"


WAYS: dict[str, Callable[[str], str]] = {
    "prefixed elements": _prefixed,
    "cells without names": _without_names,
    "no dimension": lambda text: re.sub(r"<dimension[^>]*/>", "", text),
    "other order of attributes": lambda text: re.sub(
        r'<c r="(\w+)" s="(\d+)" t="inlineStr"', r"<c t='inlineStr'  s='\2' r='\1'", text
    ),
    "comments": lambda text: text.replace("<row ", "<!-- </row></sheetData> <c> --><row ").replace(
        "<c r", "<!-- x --><c r", 5
    ),
    "character data": lambda text: re.sub(r"<t>([^<&]*)</t>", r"<t><![CDATA[\1]]></t>", text),
    "line breaks": lambda text: re.sub(r"(<row |<c |</row>)", r"\n  \1", text),
    "line breaks within tags": lambda text: text.replace('<c r="', '<c\n  r="'),
    "numbered characters": lambda text: re.sub(r"scan(?=\d)", "&#115;&#x63;an", text),
    "strict": lambda text: text.replace("http://schemas.openxmlformats.org/spreadsheetml/2006/main", "http://purl.oclc.org/ooxml/spreadsheetml/main"),
    "extensions in cells": lambda text: text.replace(
        "</is></c>", '</is><extLst><ext uri="x"><y:z xmlns:y="urn:y" y:a="1"/></ext></extLst></c>', 40
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_list_is_read_and_written_however_its_xml_is_spelt(path: Path, way: str) -> None:
    rows = samples.make_rows(4)
    samples.scanned(path, rows)
    part = samples.sheet_part(path, "Files")
    before = samples.parts(path)[part]
    samples.edit_parts(path, {part: WAYS[way]})
    assert samples.parts(path)[part] != before
    if way == "strict":
        found = list(book.Book.open(path).rows())
        assert [samples.bare(row) for row in found] == [samples.bare(row) for row in rows]
    else:
        read_like(path, rows)


def test_small_parts_with_prefixed_elements_are_added_to(path: Path) -> None:
    rows = samples.make_rows(3)
    book.create(path, samples.LAYOUT)
    small = (
        "xl/workbook.xml",
        "xl/_rels/workbook.xml.rels",
        "[Content_Types].xml",
        "xl/styles.xml",
        "_rels/.rels",
    )
    samples.edit_parts(path, dict.fromkeys(small, _prefixed))
    samples.rescan(path, rows)
    samples.rescan(path, rows[:2], restart=True)
    samples.rescan(path, rows)
    names = ["Configuration", "Files old", "Sessions old", "Files", "Sessions"]
    assert samples.loaded(path).sheetnames == names
    assert samples.loaded(path)["Files"]["A1"].fill.fgColor.rgb == "FF1F4E79"
    assert samples.files(path) == [row.file for row in rows]
    assert book.Book.open(path).folder == "/data/export"
    text = samples.parts(path)["xl/workbook.xml"].decode()
    assert text.count("<x:sheet ") == text.count("<x:definedName ") + 1 == 5
    assert f"$A$1:${LAST}$4</x:definedName>" in text


def test_a_part_in_utf_16_is_read(path: Path) -> None:
    rows = samples.make_rows(3)
    samples.scanned(path, rows)
    part = samples.sheet_part(path, "Files")
    wide = samples.parts(path)[part].decode().replace("UTF-8", "UTF-16").encode("utf-16")
    content = samples.parts(path) | {part: wide}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert samples.files(path) == [row.file for row in rows]
    samples.rescan(path, samples.make_rows(4))
    assert len(samples.files(path)) == 4
    assert samples.loaded(path)["Files"].max_row == 5


def test_parts_that_are_pointed_to_from_the_root_are_found(path: Path) -> None:
    samples.scanned(path)
    links = "xl/_rels/workbook.xml.rels"
    samples.edit_parts(path, {links: lambda text: re.sub(r'Target="/?(?:xl/)?', 'Target="/xl/', text)})
    assert len(samples.files(path)) == 5


def test_a_sheet_named_in_other_case_is_found_unless_the_exact_one_is_there(path: Path) -> None:
    samples.scanned(path)

    names = {
        "xl/workbook.xml": lambda text: text.replace("Files", "FILES").replace(
            "Configuration", "configuration"
        )
    }
    samples.edit_parts(path, names)
    assert len(samples.files(path)) == 5
    assert book.Book.open(path).configuration()
    samples.rescan(path, samples.make_rows(2))
    assert samples.loaded(path).sheetnames == ["configuration", "FILES", "Sessions"]


def test_a_title_above_the_headings_does_no_harm(path: Path) -> None:
    samples.scanned(path)
    edit(lambda workbook: workbook["Files"].insert_rows(1, 2), path)
    edit(lambda workbook: workbook["Files"].cell(1, 1, "All files"), path)
    rows = samples.make_rows(6)
    samples.rescan(path, rows)
    assert samples.files(path) == [row.file for row in rows]
    assert samples.loaded(path)["Files"]["A1"].value == "All files"


def test_columns_may_stand_in_any_order_and_people_may_put_their_own_between(path: Path) -> None:
    samples.scanned(path)

    def reorder(workbook: openpyxl.Workbook) -> None:
        page = workbook["Files"]
        page.insert_cols(1, 2)
        page["A1"], page["A3"] = "Notes", "ok"
        page["B1"], page["B2"], page["B3"] = "Status", "success", None
        for row in range(1, page.max_row + 1):
            page.cell(row, 7, page.cell(row, 7).value if row > 1 else "Checked")

    edit(reorder, path)
    found = list(book.Book.open(path).rows())
    assert [row.status for row in found][:2] == [Status.SUCCESS, Status.EMPTY]
    assert found[1].values["Notes"] == "ok"
    book.write_outcomes(path, {found[1].file: records.Outcome(found[1].file, Status.FAILED, "x")}, [])
    page = samples.loaded(path)["Files"]
    assert (page["A3"].value, page["B3"].value, page["G1"].value) == ("ok", "failed", "Checked")


def test_a_column_that_comes_back_leaves_alone_what_people_wrote_without_a_heading(path: Path) -> None:
    samples.scanned(path)

    def note(workbook: openpyxl.Workbook) -> None:
        page = workbook["Files"]
        page.delete_cols([cell.value for cell in page[1]].index("MD5") + 1)
        page.cell(3, samples.COLUMNS, "ask Ann")
        page.cell(4, samples.COLUMNS + 1, "=1+1")

    edit(note, path)
    file = samples.files(path)[1]
    book.write_outcomes(path, {file: records.Outcome(file, Status.SUCCESS, md5="ab")}, [])
    page = samples.loaded(path)["Files"]
    assert page.cell(3, samples.COLUMNS).value == "ask Ann"
    assert page.cell(4, samples.COLUMNS + 1).value == "=1+1"
    assert page.cell(1, samples.COLUMNS + 2).value == "MD5"
    assert page.cell(3, samples.COLUMNS + 2).value == "ab"


def test_new_rows_are_seen_where_people_hid_the_empty_rows_below_the_list(path: Path) -> None:
    samples.scanned(path)

    def hide(workbook: openpyxl.Workbook) -> None:
        for number in (3, 7, 8, 9):
            workbook["Files"].row_dimensions[number].hidden = True

    def flat(text: str) -> str:  # as Excel writes a row that was hidden by dragging its lower edge up
        return re.sub(r'<row r="8"[^>]*hidden="1"', '<row r="8" ht="0" hidden="1" customHeight="1"', text)

    edit(hide, path)
    samples.edit_parts(path, {samples.sheet_part(path, "Files"): flat})
    samples.rescan(path, samples.make_rows(7))
    assert ' ht="0"' not in samples.parts(path)[samples.sheet_part(path, "Files")].decode()
    hidden = samples.loaded(path)["Files"].row_dimensions
    assert [number for number in range(1, 10) if hidden[number].hidden] == [3, 9]


# 1.x

HEADINGS_OF_1X = (
    "Pattern", "File", "Filename", "Upload", "Status", "Subject", "Session", "Dataset", "SessionLabel",
    "DICOM:Manufacturer", "DICOM:ManufacturerModelName", "DICOM:Modality", "DICOM:SeriesNumber",
    "DICOM:StationName", "DICOM:StudyDate", "DICOM:StudyDescription", "SubjectName", "ID", "Directory", "filename",
)  # fmt: skip


def workbook_of_1x(path: Path) -> None:
    """Make a workbook as 1.x left it after an upload in which one file failed."""
    workbook = openpyxl.Workbook()
    page = workbook.active
    assert page is not None
    page.title = "Configuration"
    for row in (("Instructions",), (), ("Paths", "DICOM", "{SubjectName}-{ID}", "**", "{Directory}", "{filename}.dcm"),
                ("Mappings", "Subject", "ID"), ("XNAT", "Project", "Test001")):  # fmt: skip
        page.append(row)
    page = workbook.create_sheet("Files")
    page.column_dimensions["B"].width = 50
    page.append(HEADINGS_OF_1X)
    for number, status in enumerate(("success", "Digest mismatch 0123 ", None)):
        page.append(("DICOM", f"data\\Doe^John-0001\\a\\scan{number}.dcm", f"scan{number}.dcm", "Y", status, "0001",
                     "20200312", "Chest_CT", "0001_CT1", "SIEMENS", None, "CT", 3, None, "20200312", "Chest",
                     "Doe^John", "0001", "Chest CT", f"scan{number}"))  # fmt: skip
    workbook.save(path)


def test_a_workbook_of_1x_is_read(path: Path) -> None:
    workbook_of_1x(path)
    found = list(book.Book.open(path).rows())
    assert [(row.status, row.message) for row in found] == [
        (Status.SUCCESS, ""), (Status.FAILED, "Digest mismatch 0123"), (Status.EMPTY, ""),
    ]  # fmt: skip
    first = found[0]
    assert (first.file, first.subject, first.session_label) == (
        "data\\Doe^John-0001\\a\\scan0.dcm",
        "0001",
        "0001_CT1",
    )
    assert (first.series_number, first.scan_id, first.values["Directory"]) == ("3", "", "Chest CT")
    assert not first.doubt


def test_a_workbook_of_1x_takes_outcomes_in_columns_of_their_own(path: Path) -> None:
    workbook_of_1x(path)
    found = list(book.Book.open(path).rows())
    outcomes = {
        row.file: records.Outcome(row.file, Status.SUCCESS, "Checked.", "abc", scan_id="3", resource="DICOM")
        for row in found[1:]
    }
    assert book.write_outcomes(path, outcomes, [samples.make_session("0001_CT1")]) == frozenset(outcomes)
    header, *rows = samples.loaded(path)["Files"].iter_rows(values_only=True)
    assert header == (*HEADINGS_OF_1X, "Message", "MD5", "ScanID", "Resource")
    assert rows[0][4] == "success"
    assert rows[0][20:] == (None, None, None, None)
    assert rows[1][4] == "success"
    assert rows[1][20:] == ("Checked.", "abc", "3", "DICOM")
    assert book.Book.open(path).sessions()[0].session_label == "0001_CT1"


def test_a_workbook_of_1x_is_scanned_again_in_place(path: Path) -> None:
    workbook_of_1x(path)
    found = [dataclasses.replace(row, size="12") for row in book.Book.open(path).rows()]
    book.write_scan(path, found, [], ["SubjectName", "ID", "Directory", "filename"], {})
    header, *rows = samples.loaded(path)["Files"].iter_rows(values_only=True)
    assert header[: len(HEADINGS_OF_1X)] == HEADINGS_OF_1X
    assert {"Message", "ScanID", "Size", "MD5", "DICOM:SOPInstanceUID"} <= set(header)
    line = dict(zip(header, rows[1], strict=True))
    assert (line["Status"], line["Message"], line["Size"]) == ("failed", "Digest mismatch 0123", "12")
    assert [samples.bare(row) for row in book.Book.open(path).rows()] == [samples.bare(row) for row in found]


@pytest.mark.slow
@pytest.mark.interop
def test_a_workbook_that_1x_itself_wrote_is_read_and_goes_on(path: Path, tmp_path: Path, peer: Path) -> None:
    for number in (1, 2):
        builders.write_dicom(tmp_path / "data" / "Doe^John-0001" / "a" / "Chest CT" / f"scan{number}.dcm")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for arguments in (["init"], ["scan", "--dir", "data"]):
        run = [str(peer), *arguments, "--spreadsheet", path.name]
        subprocess.run(run, check=True, capture_output=True, cwd=tmp_path, env=environment, timeout=120)
    opened = book.Book.open(path)
    assert any("Paths" in line.cells for line in opened.configuration())
    rows = list(opened.rows())
    assert [(row.subject, row.upload, row.status) for row in rows] == [("0001", True, Status.EMPTY)] * 2
    outcomes = {row.file: records.Outcome(row.file, Status.SUCCESS, "ok") for row in rows}
    assert book.write_outcomes(path, outcomes, [samples.make_session("0001_CT1")]) == frozenset(outcomes)
    assert [row.status for row in book.Book.open(path).rows()] == [Status.SUCCESS] * 2
