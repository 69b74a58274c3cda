from __future__ import annotations

import dataclasses
import datetime
import html
import os
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from xml.parsers import expat

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.styles import Font

from tests.helpers import workbook_samples as samples
from tests.helpers.runs import edit
from xnatuploader import errors, records
from xnatuploader.workbook import book, files_sheet, fresh

Status = records.Status


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "files.xlsx"


# A new workbook, and what cannot be one


def test_a_new_workbook_gives_its_configuration_back(path: Path) -> None:
    book.create(path, samples.LAYOUT)
    lines = book.Book.open(path).configuration()
    assert [line.cells for line in lines] == [row for row in samples.LAYOUT if row]
    assert [line.number for line in lines] == [1, 2, 4, 6, 7, 8]


def test_what_is_typed_into_a_new_configuration_stays_text(path: Path) -> None:
    book.create(path, samples.LAYOUT)
    page = samples.loaded(path)["Configuration"]
    assert {page[name].number_format for name in ("C8", "C9", "C30")} == {"@"}


def test_a_configuration_cell_that_begins_like_a_formula_is_text(path: Path) -> None:
    book.create(path, [("Paths", "=1+1", "=HYPERLINK(1)")])
    assert samples.loaded(path)["Configuration"]["B1"].data_type == "s"
    assert book.Book.open(path).configuration()[0].cells == ("Paths", "=1+1", "=HYPERLINK(1)")


def test_an_existing_workbook_is_not_written_over(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(errors.SpreadsheetError, match="--force"):
        book.create(path, samples.LAYOUT)
    assert path.read_bytes() == b"precious"


def test_force_writes_over_an_existing_workbook(path: Path) -> None:
    path.write_bytes(b"precious")
    book.create(path, samples.LAYOUT, force=True)
    assert book.Book.open(path).configuration()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.SpreadsheetError, match="does not exist"):
        book.create(tmp_path / "none" / "files.xlsx", samples.LAYOUT)


def test_numbers_and_dates_in_the_configuration_read_as_excel_shows_them(path: Path) -> None:
    book.create(path, samples.LAYOUT)

    def typed(workbook: openpyxl.Workbook) -> None:
        page = workbook["Configuration"]
        page["C8"].number_format = "General"
        page["C8"] = 1.0
        page["D8"].number_format = "yyyy-mm-dd"
        page["D8"] = datetime.date(2020, 3, 12)
        page["E8"] = True

    edit(typed, path)
    assert book.Book.open(path).configuration()[-1].cells[2:] == ("1", "2020-03-12", "TRUE")


def test_a_missing_workbook_sends_to_init(path: Path) -> None:
    with pytest.raises(errors.SpreadsheetError, match="xnatuploader init"):
        book.Book.open(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"File,Upload\n", "not an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "password, or has the old .xls format"),
        (b"PK\x03\x04 and nothing more", "damaged"),
    ],
)
def test_what_is_no_workbook_is_named(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(errors.SpreadsheetError, match=words):
        book.Book.open(path)


def test_a_zip_of_something_else_is_no_workbook(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(errors.SpreadsheetError, match="damaged"):
        book.Book.open(path)


def test_a_workbook_without_configuration_is_an_error_only_where_it_is_asked_for(path: Path) -> None:
    openpyxl.Workbook().save(path)
    found = book.Book.open(path)
    assert list(found.rows()) == []
    assert not found.has_files
    assert found.sessions() == ()
    with pytest.raises(errors.SpreadsheetError, match="no sheet named Configuration"):
        found.configuration()


def test_a_damaged_list_is_a_clear_error(path: Path) -> None:
    samples.scanned(path)
    part = samples.sheet_part(path, "Files")
    samples.edit_parts(path, {part: lambda text: text[: len(text) // 2]})
    with pytest.raises(errors.SpreadsheetError, match="damaged"):
        list(book.Book.open(path).rows())


def test_a_cell_that_is_not_xml_is_a_clear_error(path: Path) -> None:
    samples.scanned(path)
    part = samples.sheet_part(path, "Files")
    samples.edit_parts(path, {part: lambda text: text.replace("</t></is></c></row>", "</b></is></c></row>")})
    with pytest.raises(errors.SpreadsheetError, match="damaged"):
        list(book.Book.open(path).rows())
    with pytest.raises(errors.SpreadsheetError, match="damaged"):
        list(book.Book.open(path).columns("MD5", *records.COLUMNS))


def flip_bytes(path: Path, places: Iterable[int]) -> int:
    """Check that with any of these bytes flipped the workbook is damaged or reads as before; count the damaged."""
    whole = path.read_bytes()
    before, damaged = (samples.files(path), book.Book.open(path).configuration()), 0
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            found = book.Book.open(path)
            read = [row.file for row in found.rows()], found.configuration()
        except errors.SpreadsheetError:
            damaged += 1
        else:
            assert read == before, f"byte {at} of {len(whole)}"
    return damaged


def test_flipped_bytes_in_the_zip_are_damage_and_never_a_crash(path: Path) -> None:
    samples.scanned(path)
    with zipfile.ZipFile(path) as archive:
        content = range(30, archive.start_dir, archive.start_dir // 150)
    assert flip_bytes(path, content) > 50


@pytest.mark.slow
def test_flipped_bytes_in_the_directory_of_the_zip_are_damage_and_never_a_crash(path: Path) -> None:
    samples.scanned(path)
    with zipfile.ZipFile(path) as archive:
        directory = range(archive.start_dir, path.stat().st_size)
    assert flip_bytes(path, directory) > 50


@pytest.mark.parametrize(
    "lost", ["xl/worksheets/sheet2.xml", "xl/_rels/workbook.xml.rels", "xl/styles.xml", "[Content_Types].xml"]
)
def test_a_part_that_the_workbook_names_and_the_zip_lacks_is_damage(path: Path, lost: str) -> None:
    samples.scanned(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    del parts[lost]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(errors.SpreadsheetError, match="damaged"):
        book.Book.open(path)


def test_a_document_type_is_refused(path: Path) -> None:
    samples.scanned(path)
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]>'
    for part in ("xl/workbook.xml", samples.sheet_part(path, "Files")):
        before = path.read_bytes()
        samples.edit_parts(path, {part: lambda text: text.replace("<w", bomb + "<w", 1)})
        with pytest.raises(errors.SpreadsheetError, match="damaged"):
            list(book.Book.open(path).rows())
        path.write_bytes(before)


def test_the_list_without_its_file_heading_says_so(path: Path) -> None:
    samples.scanned(path)
    edit(lambda workbook: workbook["Files"].cell(1, 2, "file"), path)
    with pytest.raises(errors.SpreadsheetError, match="no column headed File"):
        list(book.Book.open(path).rows())


# A fresh list


def test_rows_come_back_as_they_were_written(path: Path) -> None:
    given_rows = [
        samples.make_row(1),
        samples.make_row(2, upload=False, status=Status.REVIEW, message="Look at it.", subject="007"),
        samples.make_row(3, study_description="=1+1", series_description=" two  blanks ", dataset="a\nb"),
    ]
    samples.scanned(path, given_rows)
    found = list(book.Book.open(path).rows())
    assert [samples.bare(row) for row in found] == [samples.bare(row) for row in given_rows]
    assert [(row.sheet, row.number) for row in found] == [("Files", 2), ("Files", 3), ("Files", 4)]


def test_the_columns_stand_in_the_promised_order(path: Path) -> None:
    book.create(path, samples.LAYOUT)
    headings = ["ID", "DICOM:PatientSex", "Cohort"]
    book.write_scan(path, [samples.make_row(1)], [], headings, {}, mapping_headings=["Cohort"])
    first = next(samples.loaded(path)["Files"].iter_rows(values_only=True))
    assert first[:16] == (
        "Pattern", "File", "Filename", "Upload", "Status", "Message", "Subject", "Session", "Dataset", "Cohort",
        "SessionLabel", "ScanID", "Resource", "Size", "Modified", "MD5",
    )  # fmt: skip
    assert first[16] == "DICOM:Modality"
    assert first[-3:] == ("DICOM:SOPInstanceUID", "DICOM:PatientSex", "ID")


def test_every_cell_of_the_list_is_text_and_none_is_a_formula(path: Path) -> None:
    samples.scanned(path, [samples.make_row(1, study_description="=1+1", subject="+49", scan_id="-1")])
    for cells in samples.loaded(path)["Files"].iter_rows(min_row=2):
        assert {cell.data_type for cell in cells if cell.value is not None} == {"s"}
        assert {cell.number_format for cell in cells if cell.value is not None} == {"@"}


def test_the_list_has_a_frozen_header_a_filter_and_a_drop_down(path: Path) -> None:
    samples.scanned(path)
    workbook = samples.loaded(path)
    page = workbook["Files"]
    assert page.freeze_panes == "A2"
    assert page.auto_filter.ref.startswith("A1:")
    assert page.auto_filter.ref.endswith("6")
    rule = page.data_validations.dataValidation[0]
    assert (str(rule.sqref), rule.formula1) == ("D2:D1048576", '"Y,N"')
    last = records.column_letters(samples.COLUMNS)
    assert f"'Files'!$A$1:${last}$6</definedName>".encode() in samples.parts(path)["xl/workbook.xml"]


def test_an_empty_list_is_still_a_list(path: Path) -> None:
    samples.scanned(path, [], [])
    assert book.Book.open(path).has_files
    assert samples.files(path) == []
    samples.rescan(path, samples.make_rows(2))
    assert len(samples.files(path)) == 2


def test_every_part_that_is_written_is_well_formed(path: Path) -> None:
    samples.scanned(path, [samples.make_row(1, file="a\udcff\x0b&<>\"'.dcm", message="]]>")])
    for name, data in samples.parts(path).items():
        if name.endswith((".xml", ".rels")):
            expat.ParserCreate().Parse(data, True)


def test_names_that_are_not_unicode_come_back_exactly(path: Path) -> None:
    name = os.fsdecode(b"M\xfcller/\x0bscan\\x0B_x0041_.dcm")
    samples.scanned(path, [samples.make_row(1, file=name)])
    assert samples.files(path) == [name]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec=None, categories=None), min_size=1, max_size=20),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_any_texts_survive_a_scan_and_an_upload(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "files.xlsx"
        rows = [samples.make_row(at, file=text, dataset=text) for at, text in enumerate(texts)]
        samples.scanned(path, rows)
        outcomes = {text: records.Outcome(text, Status.FAILED, text) for text in texts}
        assert book.write_outcomes(path, outcomes, []) == frozenset(texts)
        found = list(book.Book.open(path).rows())
        assert [(row.file, row.dataset, row.message) for row in found] == [(text,) * 3 for text in texts]
        assert all(
            openpyxl_row[1].data_type == "s" for openpyxl_row in samples.loaded(path)["Files"].iter_rows(2)
        )


def test_a_text_too_long_for_a_cell_is_cut_and_the_outcome_still_counts_as_saved(path: Path) -> None:
    samples.scanned(path)
    name = samples.make_row(1).file
    saved = book.write_outcomes(path, {name: records.Outcome(name, Status.FAILED, "x" * 40_000)}, [])
    assert saved == {name}


def test_the_scanned_folder_is_remembered_and_outlives_openpyxl(path: Path) -> None:
    samples.scanned(path)
    assert book.Book.open(path).folder == "/data/export"
    edit(lambda workbook: None, path)
    assert book.Book.open(path).folder == "/data/export"
    book.write_scan(path, [], [], [], {book.FOLDER: "C:\\Münster & <Söhne>\\\udcff", "pattern": "x"})
    assert book.Book.open(path).folder == "C:\\Münster & <Söhne>\\\udcff"
    assert book.Book.open(path).remembered["pattern"] == "x"


def test_facts_of_others_in_the_custom_properties_stay(path: Path) -> None:
    from openpyxl.packaging.custom import StringProperty

    book.create(path, samples.LAYOUT)
    edit(lambda workbook: workbook.custom_doc_props.append(StringProperty(name="Owner", value="Ann")), path)
    samples.rescan(path, samples.make_rows(1))
    found = {entry.name: entry.value for entry in samples.loaded(path).custom_doc_props}
    assert found["Owner"] == "Ann"
    assert book.Book.open(path).remembered == {"folder": "/data/export"}


def test_the_list_goes_on_in_further_sheets(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "LAST_ROW", 4)
    samples.scanned(path, samples.make_rows(8))
    assert samples.loaded(path).sheetnames == ["Configuration", "Files", "Files 2", "Files 3", "Sessions"]
    found = list(book.Book.open(path).rows())
    assert [row.file for row in found] == [row.file for row in samples.make_rows(8)]
    assert (found[3].sheet, found[3].number) == ("Files 2", 2)
    assert len(list(book.Book.open(path).columns("Upload"))) == 8


def test_new_rows_that_no_longer_fit_go_to_a_further_sheet(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "LAST_ROW", 4)
    samples.scanned(path, samples.make_rows(5))
    rows = [*samples.make_rows(5)]
    rows[1:1] = [samples.make_row(50), samples.make_row(51)]
    samples.rescan(path, rows)
    assert samples.files(path) == [row.file for row in (*samples.make_rows(5), *rows[1:3])]
    found = [(row.sheet, row.number) for row in book.Book.open(path).rows()]
    assert found[3:] == [("Files 2", 2), ("Files 2", 3), ("Files 2", 4), ("Files 3", 2)]
    outcomes = {row.file: records.Outcome(row.file, Status.SUCCESS) for row in rows}
    assert book.write_outcomes(path, outcomes, []) == frozenset(outcomes)


def test_restart_keeps_the_old_list_under_another_name(path: Path) -> None:
    samples.scanned(path, samples.make_rows(3))
    samples.rescan(path, samples.make_rows(1), restart=True)
    samples.rescan(path, samples.make_rows(2), restart=True)
    workbook = samples.loaded(path)
    assert workbook.sheetnames == [
        *("Configuration", "Files old", "Sessions old", "Files old 2", "Sessions old 2", "Files", "Sessions")
    ]
    assert [workbook[name].max_row for name in ("Files old", "Files old 2", "Files")] == [4, 2, 3]
    assert samples.files(path) == [row.file for row in samples.make_rows(2)]
    names = samples.parts(path)["xl/workbook.xml"].decode()
    assert names.count("_FilterDatabase") == 6
    assert "'Sessions old 2'!$A$1" in html.unescape(names)


def test_restart_begins_a_new_list_of_sessions_that_keeps_what_people_decided(path: Path) -> None:
    listed = [samples.make_session("0001_CT1"), samples.make_session("0002_CT1", subject="0002")]
    samples.scanned(path, None, listed)

    def decide(workbook: openpyxl.Workbook) -> None:
        page = workbook["Sessions"]
        page["A3"], page["M3"], page["Q2"] = "N", "Y", "ask Ann"

    edit(decide, path)
    before = samples.rows_xml(path, "Sessions")
    third = samples.make_session("0003_CT1", subject="0003")
    samples.rescan(path, samples.make_rows(1), [listed[1], third], restart=True)
    kept = dataclasses.replace(listed[1], upload=False, release_review=True)
    assert book.Book.open(path).sessions() == (kept, third)
    assert samples.rows_xml(path, "Sessions old") == before


# What people and Excel make of the cells


def edited(path: Path, cells: dict[str, object], rows: int = 4) -> list[records.Row]:
    samples.scanned(path, [samples.make_row(number, subject=f"034{number}") for number in range(rows)])

    def typed(workbook: openpyxl.Workbook) -> None:
        for name, value in cells.items():
            cell = workbook["Files"][name]
            cell.number_format = "yyyy-mm-dd" if isinstance(value, datetime.date) else "General"
            cell.value = value  # type: ignore[assignment]

    edit(typed, path)
    return list(book.Book.open(path).rows())


def test_a_number_among_zero_padded_subjects_is_in_doubt_and_named(path: Path) -> None:
    found = edited(path, {"G3": 341})
    assert found[1].subject == "341"
    assert found[1].doubt == (
        "Subject (column G) is the number 341, but other cells of the column are written like 0340. "
        "Format the cell as Text and type it again with its zeros."
    )
    assert [row.doubt for row in (found[0], found[2], found[3])] == ["", "", ""]


def test_the_doubt_does_not_depend_on_which_row_comes_first(path: Path) -> None:
    assert "(column G) is the number 340" in edited(path, {"G2": 340})[0].doubt


def test_numbers_among_plain_numbers_are_accepted(path: Path) -> None:
    samples.scanned(path, [samples.make_row(number, subject=f"34{number}") for number in range(3)])

    def typed(workbook: openpyxl.Workbook) -> None:
        workbook["Files"]["G2"].number_format = "General"
        workbook["Files"]["G2"] = 340

    edit(typed, path)
    first = next(book.Book.open(path).rows())
    assert (first.subject, first.doubt) == ("340", "")


def test_a_number_in_a_row_without_a_file_puts_no_other_row_in_doubt(path: Path) -> None:
    found = edited(path, {"B3": None, "G3": 2})
    assert [(row.subject, row.doubt) for row in found] == [("0340", ""), ("0342", ""), ("0343", "")]


def test_a_date_among_study_dates_is_read_as_one_of_them(path: Path) -> None:
    found = edited(path, {"H3": datetime.date(2020, 3, 13), "Q3": "x"})
    assert (found[1].session, found[1].doubt) == ("20200313", "")


def test_a_date_in_the_study_date_column_is_read_as_dicom_writes_it(path: Path) -> None:
    headings = files_sheet.headings([], [])
    letters = openpyxl.utils.get_column_letter(headings.index("DICOM:StudyDate") + 1)
    assert edited(path, {f"{letters}3": datetime.date(2020, 3, 13)})[1].study_date == "20200313"


def test_a_subject_that_excel_took_for_a_date_is_in_doubt(path: Path) -> None:
    found = edited(path, {"G3": datetime.date(2020, 1, 2)})
    assert "turned into a date" in found[1].doubt


def test_a_number_that_excel_rounded_is_in_doubt(path: Path) -> None:
    assert "rounded" in edited(path, {"J3": 1.2345678901234567e20})[1].doubt


def test_an_error_in_a_cell_that_decides_the_place_is_in_doubt(path: Path) -> None:
    samples.scanned(path)
    part = samples.sheet_part(path, "Files")
    samples.edit_parts(
        path, {part: lambda text: _replace_cell(text, "G3", '<c r="G3" t="e"><v>#N/A</v></c>')}
    )
    assert "the error #N/A" in list(book.Book.open(path).rows())[1].doubt


def _replace_cell(text: str, name: str, new: str) -> str:
    begin = text.index(f'<c r="{name}"')
    return text[:begin] + new + text[text.index("</c>", begin) + 4 :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "upload"),
    [("y", True), (" Yes ", True), (True, True), (1, True), ("x", True), ("N", False), (False, False), (None, False),
     ("Yes please", False), (0, False)],
)  # fmt: skip
def test_the_upload_cell_is_read_as_people_fill_it(path: Path, typed: object, upload: bool) -> None:
    assert edited(path, {"D3": typed})[1].upload is upload


def test_an_error_text_of_1x_becomes_a_failed_row_with_a_message(path: Path) -> None:
    found = edited(path, {"E3": "Digest mismatch", "E4": "None", "E5": "SUCCESS "})
    assert [(row.status, row.message) for row in found[1:]] == [
        (Status.FAILED, "Digest mismatch"), (Status.EMPTY, ""), (Status.SUCCESS, ""),
    ]  # fmt: skip


def test_a_formula_in_a_cell_is_read_by_its_last_value(path: Path) -> None:
    samples.scanned(path)
    part = samples.sheet_part(path, "Files")
    cell = '<c r="D3" s="1" t="str"><f>IF(G3="0001","N","Y")</f><v>N</v></c>'
    samples.edit_parts(path, {part: lambda text: _replace_cell(text, "D3", cell)})
    assert [row.upload for row in book.Book.open(path).rows()] == [True, False, True, True, True]


def test_formatted_text_in_a_cell_is_read_whole(path: Path) -> None:
    samples.scanned(path)
    part = samples.sheet_part(path, "Files")
    cell = (
        '<c r="I3" t="inlineStr"><is><r><rPr><b/><color rgb="FF0000"/></rPr><t>Che</t></r><r>'
        '<t xml:space="preserve">st </t></r><r><t>a &amp;&#233;</t></r><rPh sb="0" eb="1"><t>no</t></rPh></is></c>'
    )
    samples.edit_parts(path, {part: lambda text: _replace_cell(text, "I3", cell)})
    assert [row.dataset for row in book.Book.open(path).rows()][:3] == ["Chest CT", "Chest a &é", "Chest CT"]


# Re-scan


def test_a_rescan_changes_only_cells_that_differ(path: Path) -> None:
    samples.scanned(path)
    before = samples.parts(path)
    samples.rescan(path, list(book.Book.open(path).rows()))
    assert samples.parts(path) == before


def test_new_rows_come_last_and_rows_that_were_not_found_again_stay(path: Path) -> None:
    rows = samples.make_rows(6)
    samples.scanned(path, [rows[0], rows[2], rows[3], rows[5]])
    samples.rescan(path, [rows[0], rows[1], rows[2], rows[4], rows[5]])
    assert samples.files(path) == [rows[number].file for number in (0, 2, 3, 5, 1, 4)]
    assert [row.number for row in book.Book.open(path).rows()] == [2, 3, 4, 5, 6, 7]


def test_rows_that_a_person_sorted_keep_their_order(path: Path) -> None:
    rows = samples.make_rows(4)
    samples.scanned(path, [rows[3], rows[1], rows[0]])
    samples.rescan(path, [rows[3], rows[1], rows[0], rows[2]])
    assert samples.files(path) == [rows[number].file for number in (3, 1, 0, 2)]


def test_files_that_sort_before_the_listed_ones_come_last_too(path: Path) -> None:
    rows = samples.make_rows(4)
    samples.scanned(path, rows[2:])
    samples.rescan(path, rows)
    assert samples.files(path) == [rows[number].file for number in (2, 3, 0, 1)]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), unique=True), st.lists(st.integers(0, 12), unique=True))
def test_no_rescan_moves_empties_or_changes_a_row_that_it_did_not_have_to(
    old: list[int], new: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "files.xlsx"
        samples.scanned(path, [samples.make_row(number) for number in old])
        before = samples.rows_xml(path, "Files")
        samples.rescan(path, [samples.make_row(number) for number in new])
        added = [number for number in new if number not in old]
        assert samples.rows_xml(path, "Files")[: len(before)] == before
        assert samples.files(path) == [samples.make_row(number).file for number in (*old, *added)]
        assert samples.loaded(path)["Files"].max_row == len(old) + len(added) + 1


def test_rows_come_below_everything_that_people_wrote_under_the_list(path: Path) -> None:
    rows = samples.make_rows(4)
    samples.scanned(path, rows[:2])
    edit(lambda workbook: workbook["Files"].cell(9, 40, "checked by Ann"), path)
    samples.rescan(path, rows)
    assert [row.number for row in book.Book.open(path).rows()] == [2, 3, 10, 11]
    assert samples.loaded(path)["Files"].cell(9, 40).value == "checked by Ann"


def test_rows_come_below_merged_cells_under_the_list(path: Path) -> None:
    rows = samples.make_rows(4)
    samples.scanned(path, rows[:2])
    edit(lambda workbook: workbook["Files"].merge_cells("A5:D7"), path)
    samples.rescan(path, rows)
    assert [row.number for row in book.Book.open(path).rows()] == [2, 3, 8, 9]


def test_rows_that_only_look_like_something_are_filled_and_keep_their_looks(path: Path) -> None:
    rows = samples.make_rows(6)
    samples.scanned(path, rows[:2])

    def prepare(workbook: openpyxl.Workbook) -> None:
        page = workbook["Files"]
        page.row_dimensions[5].height = 40
        page["E5"].font = page["E8"].font = Font(italic=True)

    edit(prepare, path)
    samples.rescan(path, rows)
    page = samples.loaded(path)["Files"]
    assert [row.number for row in book.Book.open(path).rows()] == [2, 3, 4, 5, 6, 7]
    assert [samples.bare(row) for row in book.Book.open(path).rows()] == [samples.bare(row) for row in rows]
    assert page.row_dimensions[5].height == 40
    assert page["E8"].font.italic
    assert page["B5"].number_format == "@"
    samples.rescan(path, samples.make_rows(8))
    assert samples.loaded(path)["Files"].max_row == 9


def test_a_row_in_which_only_the_looks_of_a_status_are_set_takes_the_status(path: Path) -> None:
    rows = samples.make_rows(3)
    rows[2] = dataclasses.replace(rows[2], status=Status.FAILED)
    samples.scanned(path, rows[:2])
    edit(lambda workbook: setattr(workbook["Files"]["E4"], "font", Font(italic=True)), path)
    samples.rescan(path, rows)
    cell = samples.loaded(path)["Files"]["E4"]
    assert (cell.value, cell.font.italic) == ("failed", True)


def test_a_file_listed_twice_keeps_both_lines_when_both_are_wanted(path: Path) -> None:
    rows = samples.make_rows(2)
    samples.scanned(path, [rows[0], rows[1], dataclasses.replace(rows[0], message="again")])
    found = list(book.Book.open(path).rows())
    samples.rescan(path, found)
    assert [row.message for row in book.Book.open(path).rows()] == ["", "", "again"]


def test_columns_that_are_new_are_added_to_the_right(path: Path) -> None:
    samples.scanned(path)
    row = samples.make_row(0, values=records.Values({"DICOM:PatientSex": 0}, ("F",)))
    book.write_scan(path, [row], [], ["DICOM:PatientSex"], {})
    header, first, second, *_ = samples.loaded(path)["Files"].iter_rows(values_only=True)
    assert (header[-1], first[-1], second[-1]) == ("DICOM:PatientSex", "F", None)
    assert "ID" in header


# Outcomes


def test_outcomes_change_status_message_and_md5_and_nothing_else(path: Path) -> None:
    rows = samples.make_rows(4)
    samples.scanned(path, rows)
    name = rows[2].file
    outcome = records.Outcome(name, Status.SUCCESS, "Checked.", "d41d8cd98f00b204e9800998ecf8427e")
    assert book.write_outcomes(path, {name: outcome}, []) == {name}
    found = list(book.Book.open(path).rows())
    expected = dataclasses.replace(rows[2], status=Status.SUCCESS, message="Checked.", md5=outcome.md5)
    assert [samples.bare(row) for row in found] == [
        samples.bare(row) for row in (rows[0], rows[1], expected, rows[3])
    ]


def test_outcomes_leave_all_other_parts_byte_for_byte(path: Path) -> None:
    samples.scanned(path)
    before = samples.parts(path)
    name = samples.make_row(2).file
    book.write_outcomes(
        path, {name: records.Outcome(name, Status.FAILED, "No.")}, [samples.make_session(failed=1)]
    )
    after = samples.parts(path)
    changed = {part for part in before if before[part] != after[part]}
    assert changed == {samples.sheet_part(path, "Files"), samples.sheet_part(path, "Sessions")}
    assert before.keys() == after.keys()


def test_outcomes_name_labels_and_scans_where_they_had_to_be_given(path: Path) -> None:
    samples.scanned(path)
    name = samples.make_row(1).file
    outcome = records.Outcome(name, Status.SUCCESS, "", "", "a-1.dcm", "L_CT2", "5-CT1", "secondary")
    book.write_outcomes(path, {name: outcome}, [])
    row = list(book.Book.open(path).rows())[1]
    assert (row.filename, row.session_label, row.scan_id, row.resource) == (
        "a-1.dcm",
        "L_CT2",
        "5-CT1",
        "secondary",
    )
    book.write_outcomes(path, {name: records.Outcome(name, Status.FAILED, "later")}, [])
    row = list(book.Book.open(path).rows())[1]
    assert (row.filename, row.scan_id, row.status, row.message) == (
        "a-1.dcm",
        "5-CT1",
        Status.FAILED,
        "later",
    )


def test_outcomes_find_rows_by_file_after_a_person_sorted_them(path: Path) -> None:
    rows = samples.make_rows(3)
    samples.scanned(path, rows)
    samples.rescan(path, rows)

    def reverse(workbook: openpyxl.Workbook) -> None:
        page = workbook["Files"]
        values = [[cell.value for cell in row] for row in page.iter_rows(2)]
        for at, row in enumerate(reversed(values), 2):
            for column, value in enumerate(row, 1):
                page.cell(at, column, value)

    edit(reverse, path)
    book.write_outcomes(path, {rows[0].file: records.Outcome(rows[0].file, Status.SUCCESS)}, [])
    assert [row.status for row in book.Book.open(path).rows()] == [Status.EMPTY, Status.EMPTY, Status.SUCCESS]


def test_an_outcome_of_a_file_that_is_not_listed_does_not_count_as_saved(path: Path) -> None:
    samples.scanned(path)
    name = samples.make_row(1).file
    outcomes = {key: records.Outcome(key, Status.SUCCESS) for key in (name, "gone.dcm")}
    assert book.write_outcomes(path, outcomes, []) == {name}


# Sessions


def test_sessions_come_back_as_they_were_written(path: Path) -> None:
    sessions = (
        samples.make_session("0001_CT1", scans=2, files=30, size=15_800_000, done=3, failed=1, left=26,
                             warnings="Gaps.", modality="CT"),
        samples.make_session("0342_CT1", subject="0342", upload=False, release_review=True, join=True),
    )  # fmt: skip
    samples.scanned(path, None, sessions)
    assert book.Book.open(path).sessions() == sessions


def test_what_people_decide_on_the_sessions_sheet_stays(path: Path) -> None:
    samples.scanned(path, None, [samples.make_session(files=3)])

    def decide(workbook: openpyxl.Workbook) -> None:
        page = workbook["Sessions"]
        page["A2"], page["M2"], page["N2"], page["Q1"], page["Q2"] = "n", "yes", "Y", "Notes", "ask Ann"

    edit(decide, path)
    new = [samples.make_session(files=9, warnings="x"), samples.make_session("0002_CT1", subject="0002")]
    for write in (
        lambda: samples.rescan(path, samples.make_rows(2), new),
        lambda: book.write_outcomes(path, {}, new),
    ):
        write()
        first, second = book.Book.open(path).sessions()
        assert (first.upload, first.release_review, first.join, first.files) == (False, True, True, 9)
        assert (second.session_label, second.upload) == ("0002_CT1", True)
        page = samples.loaded(path)["Sessions"]
        assert (page["A2"].value, page["Q2"].value) == ("n", "ask Ann")


def test_rows_of_other_sessions_stay_where_they_are_at_scan_and_at_upload(path: Path) -> None:
    two = [samples.make_session(), samples.make_session("0002_CT1", subject="0002")]
    samples.scanned(path, None, two)
    before = samples.rows_xml(path, "Sessions")
    book.write_outcomes(path, {}, two[:1])
    samples.rescan(path, samples.make_rows(1), two[1:])
    assert samples.rows_xml(path, "Sessions") == before


def test_a_new_session_comes_last_whatever_its_date(path: Path) -> None:
    listed = [samples.make_session("0001_CT1"), samples.make_session("0002_CT1", subject="0002")]
    samples.scanned(path, None, listed)
    edit(lambda workbook: workbook["Sessions"].cell(3, 17, "ask Ann"), path)
    new = samples.make_session("0000_CT1", subject="0000", date="20190101", link="https://xnat.example.org/1")
    samples.rescan(path, samples.make_rows(1), [new, *listed])
    page = samples.loaded(path)["Sessions"]
    assert [row.session_label for row in book.Book.open(path).sessions()] == [
        "0001_CT1",
        "0002_CT1",
        "0000_CT1",
    ]
    assert page["Q3"].value == "ask Ann"
    assert page["O4"].hyperlink.target == "https://xnat.example.org/1"
    assert (page.auto_filter.ref, page["G4"].number_format) == ("A1:O4", "#,##0")


def test_a_link_to_xnat_can_be_clicked_and_is_made_once(path: Path) -> None:
    url = "https://xnat.example.org/data/experiments/X?a=1&b=2"
    samples.scanned(path)
    for _ in range(2):
        book.write_outcomes(path, {}, [samples.make_session(link=url)])
    cell = samples.loaded(path)["Sessions"]["O2"]
    assert cell.value == url
    assert cell.hyperlink is not None
    assert cell.hyperlink.target == url
    assert samples.parts(path)[samples.sheet_part(path, "Sessions")].count(b"<hyperlink ") == 1


def test_counts_on_the_sessions_sheet_are_numbers(path: Path) -> None:
    samples.scanned(path, None, [samples.make_session(files=3, size=2_000_000)])
    page = samples.loaded(path)["Sessions"]
    assert (page["G2"].value, page["H2"].value, page["D2"].value) == (3, 2_000_000, "20200312")
    assert "MB" in page["H2"].number_format


# Sheets for people to look at


def test_a_report_is_written_anew_each_time_and_the_rest_stays(path: Path) -> None:
    samples.scanned(path)
    before = samples.parts(path)[samples.sheet_part(path, "Files")]
    book.write_report(path, "Look", ("Tag", "After"), [("1", "=x"), ("2", "")])
    book.write_report(path, "Look", ("Tag", "After"), [("3", "y")], {"After": 40})
    page = samples.loaded(path)["Look"]
    assert list(page.iter_rows(values_only=True)) == [("Tag", "After"), ("3", "y")]
    assert samples.loaded(path).sheetnames[-1] == "Look"
    assert samples.parts(path)[samples.sheet_part(path, "Files")] == before


# Fast ways


def test_chosen_columns_are_read_without_the_rest(path: Path) -> None:
    samples.scanned(path, [samples.make_row(0), samples.make_row(1, upload=False, status=Status.SKIPPED)])
    found = list(book.Book.open(path).columns("Status", "File", "Upload", "Nothing", "SessionLabel"))
    name = samples.make_row(1).file
    assert found[1] == ("skipped", name, "N", "", "0001_20200312_CT")
