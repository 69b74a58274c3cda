"""What two rooms say separately, because neither may import the other, is the same."""

from __future__ import annotations

from xnatuploader import records
from xnatuploader.config import mappings, sheet
from xnatuploader.dicom import reader
from xnatuploader.workbook import files_sheet


def test_the_words_of_the_review_row_are_those_that_reading_knows() -> None:
    assert sheet.REVIEW_WORDS == reader.REVIEW_WORDS


def test_no_captured_name_can_take_a_fixed_heading() -> None:
    fixed = {heading for heading in files_sheet.headings((), ()) if not heading.startswith("DICOM:")}
    assert fixed <= set(mappings.FIXED_HEADINGS)


def test_every_header_field_of_a_row_has_its_column() -> None:
    told = {heading for heading in files_sheet.headings((), ()) if heading.startswith("DICOM:")}
    assert told == {f"DICOM:{keyword}" for keyword in records.DICOM_FIELDS}
