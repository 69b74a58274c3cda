"""Mapping cells and label templates: what they name, what they build, what is wrong with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnatuploader import errors
from xnatuploader.config import mappings
from xnatuploader.config.lines import LabelledRow

CAPTURES = ("ID", "Directory", "Visit_Date", "Subject")


def row(label, cells):
    values = tuple((f"Configuration {chr(ord('C') + at)}27", text) for at, text in enumerate(cells))
    return LabelledRow(label, "Configuration B27", values)


def mapping(*cells, captures=CAPTURES):
    return mappings.parse(row("Row", cells), captures)


def value(*cells, captures=None, dicom=None):
    return mappings.resolve(mapping(*cells), captures or {}, dicom or {})


def label(*cells, captures=CAPTURES, rows=("Subject", "Session", "Dataset", "Visit Date")):
    return mappings.parse_label(row("SessionLabel", cells), captures, rows)


def problems(read, *cells):
    with pytest.raises(errors.ConfigurationError) as caught:
        read(*cells)
    return caught.value.problems


class TestCells:
    def test_a_captured_name(self):
        assert value("ID", captures={"ID": "0001"}) == "0001"

    def test_a_dicom_field_by_keyword_and_by_tag(self):
        assert value("DICOM:SeriesNumber", dicom={"SeriesNumber": "3"}) == "3"
        assert value("DICOM:0008,103E", dicom={"0008,103e": "Head"}) == "Head"
        assert mapping("dicom: (0008, 103E)").fields == ("DICOM:0008,103e",)

    def test_cells_are_joined_with_nothing_between(self):
        assert value("ID", "DICOM:Modality", captures={"ID": "1"}, dicom={"Modality": "CT"}) == "1CT"

    def test_a_template_with_braces(self):
        cell = "S{ID}_{DICOM:Modality}-x"
        assert value(cell, captures={"ID": "1"}, dicom={"Modality": "CT"}) == "S1_CT-x"

    def test_values_keep_their_spaces_and_signs(self):
        assert value("ID", captures={"ID": " a  b^c/d "}) == " a  b^c/d "

    @pytest.mark.parametrize(
        "cell", ["DICOM:StudyDate|ID", "{DICOM:StudyDate|ID}", "{DICOM:StudyDate} | {ID}"]
    )
    def test_the_first_that_is_not_empty_is_taken(self, cell):
        assert value(cell, captures={"ID": "1"}, dicom={"StudyDate": "2020"}) == "2020"
        assert value(cell, captures={"ID": "1"}, dicom={"StudyDate": ""}) == "1"
        assert value(cell, captures={"ID": "1"}, dicom={"StudyDate": "  "}) == "1"
        assert value(cell, captures={"ID": "1"}) == "1"

    def test_a_template_is_an_alternative_as_a_whole(self):
        cell = "{ID}_{Directory}|x{Directory}"
        assert value(cell, captures={"ID": "1", "Directory": "d"}) == "1_d"
        assert value(cell, captures={"Directory": "d"}) == "xd"

    def test_a_missing_value_is_named(self):
        assert value("ID") == mappings.Missing("ID")
        assert value("{ID}_{DICOM:StudyDate}", captures={"ID": "1"}) == mappings.Missing("DICOM:StudyDate")
        both = mappings.Missing("DICOM:StudyDate or ID")
        assert value("DICOM:StudyDate|ID") == both
        assert value("{DICOM:StudyDate|ID}_x") == both

    def test_a_capture_may_be_named_by_its_heading(self):
        assert value("Path:Subject", captures={"Subject": "s"}) == "s"

    def test_fields_are_listed_once(self):
        assert mapping("ID", "{ID}_{DICOM:Modality|ID}").fields == ("ID", "DICOM:Modality")


class TestProblems:
    @pytest.mark.parametrize(
        ("cell", "said"),
        [
            ("StudyDate", "write DICOM:StudyDate"),
            ("id", "did you mean ID?"),
            ("Directry", "did you mean Directory?"),
            ("DICOM:StudyDat", "did you mean DICOM:StudyDate?"),
            ("DICOM:Patient ID", "did you mean DICOM:PatientID?"),
            ("DICOM:Nonsense", "use the standard's keyword"),
            ("DICOM:", "use the standard's keyword"),
            ("{ID", "unmatched brace"),
            ("ID}", "unmatched brace"),
            ("{a{ID}}", "unmatched brace"),
            ("{}", "lacks a name"),
            ("ID|", "lacks a name"),
            ("|ID", "lacks a name"),
            ("ID||ID", "lacks a name"),
            ("{ID|}", "lacks a name"),
            ("{DICOM:StudyDate|SeriesDate}", "write DICOM:SeriesDate"),
            ("_", "Fixed text needs a name in braces beside it"),
            ("MR scan", "Known names: ID, Directory"),
        ],
    )
    def test_a_wrong_cell_is_named_with_what_to_write(self, cell, said):
        (problem,) = problems(mapping, "ID", cell)
        assert problem.startswith("Configuration D27: ")
        assert said in problem

    def test_all_cells_of_a_row_are_judged(self):
        assert [p[:18] for p in problems(mapping, "x", "ID", "{")] == [
            "Configuration C27:",
            "Configuration E27:",
        ]

    def test_a_row_without_cells_is_a_problem_of_its_label(self):
        (problem,) = problems(mapping)
        assert problem.startswith("Configuration B27: 'Row' has no value")

    @given(st.lists(st.text(alphabet="{}|ID:, COM", max_size=9), max_size=3))
    def test_any_cells_are_read_or_are_problems(self, cells):
        try:
            told: object = mapping(*cells).fields
        except errors.ConfigurationError as error:
            told = error.problems
        assert told


class TestLabels:
    def test_fields_are_headings_of_the_sheet_and_modality_and_visit(self):
        template = label("{Subject}_{Visit Date}_{ID}_{DICOM:StudyID}_{Modality}{Visit}")
        assert template.fields == ("Subject", "Visit Date", "ID", "DICOM:StudyID", "Modality", "Visit")
        assert template.fill(lambda field: f"<{field}>") == (
            "<Subject>_<Visit Date>_<ID>_<DICOM:StudyID>_<Modality><Visit>"
        )

    def test_a_mapping_row_comes_before_a_capture_of_the_same_name(self):
        assert label("{Subject}").fields == ("Subject",)
        assert label("{Path:Subject}").fields == ("Path:Subject",)

    def test_visit_and_modality_are_never_captures(self):
        template = label("{Visit}{Path:Visit}{Modality}", captures=("Visit", "Modality"))
        assert template.fields == ("Visit", "Path:Visit", "Modality")

    def test_alternatives_and_missing_values(self):
        template = label("{Session|Visit}_{ID}")
        values = {"Visit": "2", "ID": "1"}
        assert template.fill(lambda field: values.get(field, "")) == "2_1"
        assert template.fill(lambda field: "") == mappings.Missing("Session or Visit")

    def test_a_name_that_nothing_has_is_a_problem(self):
        (problem,) = problems(label, "{Subject}_{Vist}")
        assert problem.startswith("Configuration C27: 'Vist'")
        assert "did you mean Visit?" in problem
        assert "Subject_CT" in problems(label, "Subject_CT")[0]


class TestHeadings:
    def test_a_capture_that_shares_its_name_is_headed_with_path(self):
        found = mappings.headings(("ID", "File", "filename", "Site", "Visit", "SITE"), ("Subject", "Site"))
        assert found == {
            "ID": "ID",
            "File": "Path:File",
            "filename": "filename",
            "Site": "Path:Site",
            "Visit": "Path:Visit",
            "SITE": "SITE",
        }

    def test_dicom_fields_of_all_templates_are_listed_once_without_prefix(self):
        templates = [mapping("DICOM:StudyDate|ID").template, label("{DICOM:StudyDate}{DICOM:0010,0010}")]
        assert mappings.dicom_fields(templates) == ("StudyDate", "0010,0010")


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("0008,0020", "0008,0020"),
        ("(0008, 103E)", "0008,103e"),
        (" 0008,0020 ", "0008,0020"),
        ("8,20", ""),
        ("ID", ""),
    ],
)
def test_tags_have_one_form(written, tag):
    assert mappings.canonical_tag(written) == tag
