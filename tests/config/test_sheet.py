"""The Configuration sheet: the default layout, the layout of 1.x, and every mistake told at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnatuploader import errors
from xnatuploader.config import mappings, patterns, sheet
from xnatuploader.dicom import reader
from xnatuploader.records import ConfigurationLine

SEED_PATHS = (
    [f"Doe^John-0001/20200312/Chest CT/scan{n:04}.dcm" for n in range(3)]
    + [f"Roe^Jane-0342/20190115/Head CT/scan{n:04}.dcm" for n in range(4)]
    + [f"Roe^Jane-0342/20200623/Head CT/scan{n:04}.dcm" for n in range(3)]
    + [f"Roe^Jane-0342/20200623/Neck CT/scan{n:04}.dcm" for n in range(4)]
)

LAYOUT_OF_1X = (
    ("Instructions",),
    ("\nPaths are patterns.\n\nMappings combine what was captured.\n",),
    (),
    ("Configuration",),
    ("Paths", "DICOM", "{SubjectName}-{ID}", "**", "{Directory}", "{filename}.dcm"),
    (),
    (),
    (None, None, None),
    (),
    ("Mappings", "Subject", "ID"),
    (None, "Session", "DICOM:StudyDate"),
    (None, "Dataset", "Directory"),
    (),
    ("XNAT", "Project", "Test001", None),
    (None, "Server", "http://localhost:8080"),
    (None, "AllowFields", "AccessionNumber"),
    (None, "SkipImageTypes", "DOSE_INFO"),
)


def text(cell):
    """Return a cell as the workbook gives it: Excel makes 17.0 of a project's number."""
    if isinstance(cell, float):
        return f"{cell:g}"
    return "" if cell is None else str(cell)


def parse(grid):
    return sheet.parse(
        [ConfigurationLine(number, tuple(map(text, cells))) for number, cells in enumerate(grid, 1)]
    )


def written(template):
    """Return a template as it is written in its cells."""
    return template.fill(lambda field: f"{{{field}}}")


def small_sheet(paths=None, maps=None, xnat=None):
    """A small sheet; rows are given without column A. Paths from row 1, Mappings from 11, XNAT from 21."""
    sections = {
        "Paths": paths if paths is not None else [("Nested", "{ID}", "{Directory}", "{filename}")],
        "Mappings": maps
        if maps is not None
        else [
            ("Subject", "ID"),
            ("Session", "DICOM:StudyDate"),
            ("Dataset", "Directory"),
            ("SessionLabel", "{ID}"),
        ],
        "XNAT": xnat if xnat is not None else [("Project", "P"), ("Server", "https://x.org")],
    }
    grid = []
    for name, rows in sections.items():
        grid += [(name if at == 0 else "", *row) for at, row in enumerate(rows)]
        grid += [()] * (10 - len(rows))
    return grid


def problems(**sections):
    with pytest.raises(errors.ConfigurationError) as caught:
        parse(small_sheet(**sections))
    return caught.value.problems


MAPS = [("Subject", "ID"), ("Session", "DICOM:StudyDate"), ("Dataset", "Directory")]


class TestDefaultLayout:
    def test_it_reads_back_as_the_defaults(self):
        read = parse(sheet.DEFAULT_LAYOUT)
        without = parse(small_sheet(xnat=[]))
        for setting in sheet.SETTINGS:
            assert getattr(read, setting.field) == getattr(without, setting.field), setting.label
        assert (read.skip_image_types, read.review) == (("DOSE_INFO",), reader.REVIEW_WORDS)
        assert (read.anonymize, read.retain_dates, read.allow_fields) == (False, "none", ())
        assert read.rows == ("Subject", "Session", "Dataset")
        assert written(read.session_label) == "{Subject}_{Session}_{Modality}"

    def test_it_fits_the_example_tree(self):
        read = parse(sheet.DEFAULT_LAYOUT)
        found = set()
        for path in SEED_PATHS:
            match = read.matcher.match(path)
            assert isinstance(match, patterns.PathMatch)
            date = path.split("/")[1]
            found.add(tuple(mappings.resolve(m, match.values, {"StudyDate": date}) for m in read.mappings))
        assert found == {
            ("0001", "20200312", "Chest CT"),
            ("0342", "20190115", "Head CT"),
            ("0342", "20200623", "Head CT"),
            ("0342", "20200623", "Neck CT"),
        }

    def test_column_b_is_empty_above_the_first_section(self):
        first = next(at for at, line in enumerate(sheet.DEFAULT_LAYOUT) if line and line[0] == "Paths")
        assert first > 5
        assert all(len(line) <= 1 for line in sheet.DEFAULT_LAYOUT[:first])

    def test_the_instructions_name_every_row(self):
        above = "\n".join(line[0] for line in sheet.DEFAULT_LAYOUT if len(line) == 1)
        for line in sheet.DEFAULT_LAYOUT:
            if len(line) > 1 and line[1] != "Nested":
                assert line[1] in above

    def test_no_instruction_is_long_or_taken_for_a_formula(self):
        for line in sheet.DEFAULT_LAYOUT:
            if len(line) == 1:
                assert len(line[0]) <= 110
                assert line[0][0] not in "=+-@"

    def test_server_and_project_are_asked_for_with_cell_and_option(self):
        with pytest.raises(errors.ConfigurationError) as caught:
            parse(sheet.DEFAULT_LAYOUT).require_server_and_project()
        server, project = caught.value.problems
        cells = {line[1]: f"C{at}" for at, line in enumerate(sheet.DEFAULT_LAYOUT, 1) if len(line) > 1}
        assert server.startswith(f"Configuration {cells['Server']}: Server is empty")
        assert "--server" in server
        assert project.startswith(f"Configuration {cells['Project']}: Project is empty")
        assert "--project" in project


class TestSheetsOf1x:
    def test_its_default_is_read(self):
        read = parse(LAYOUT_OF_1X)
        assert written(read.session_label) == "{Subject}_{Modality}{Visit}"
        assert read.session_label.fields == ("Subject", "Modality", "Visit")
        assert (read.project, read.server) == ("Test001", "http://localhost:8080")
        assert read.allow_fields == ("AccessionNumber",)
        assert read.skip_image_types == ("DOSE_INFO",)
        assert read.review == reader.REVIEW_WORDS
        assert not read.anonymize


class TestCells:
    def test_numbers_blank_cells_and_blank_lines_are_read(self):
        grid = small_sheet(
            xnat=[("Project", 17.0, None), ("Server", None, "https://x.org"), (None, None), ("AllowFields",)]
        )
        grid.insert(1, (None, 3))
        read = parse([line if line != (None, 3) else () for line in grid])
        assert (read.project, read.server) == ("17", "https://x.org")
        assert read.allow_fields == ()

    def test_a_number_or_a_note_in_column_a_changes_nothing(self):
        grid = small_sheet()
        grid[11] = ("Path 2", *grid[11][1:])
        grid[12] = (5, *grid[12][1:])
        grid[13] = ("how we name sessions here", *grid[13][1:])
        assert parse(grid).rows == ("Subject", "Session", "Dataset")

    def test_spaces_round_a_cell_do_not_count(self):
        read = parse(small_sheet(paths=[(" Nested ", " {ID} ", "{Directory}\xa0", "{filename}")]))
        assert read.matcher.sets[0].text == "{ID} | {Directory} | {filename}"
        assert read.matcher.sets[0].label == "Nested"

    def test_a_row_that_is_not_there_has_its_default(self):
        read = parse(small_sheet(xnat=[("Project", "P")]))
        assert read.skip_image_types == ("DOSE_INFO",)
        assert read.review == reader.REVIEW_WORDS
        assert read.server == ""

    def test_columns_past_z_have_two_letters(self):
        long = ("Nested", *["*"] * 24, "{")
        assert any(p.startswith("Configuration AA1: ") for p in problems(paths=[long]))
        (problem, *_) = problems(paths=[("Nested", *["*"] * 50, "{")])
        assert problem.startswith("Configuration BA1: ")

    def test_a_section_may_have_its_name_on_a_line_of_its_own_and_any_case(self):
        grid = small_sheet()
        grid.insert(0, (" paths ",))
        grid[1] = ("", *grid[1][1:])
        assert parse(grid).matcher.sets[0].text == "{ID} | {Directory} | {filename}"

    @pytest.mark.parametrize("word", ["Y", "y", "yes", "TRUE", True, 1, 1.0, "x", " X "])
    def test_words_for_yes(self, word):
        assert parse(small_sheet(xnat=[("Anonymize", word)])).anonymize

    @pytest.mark.parametrize("word", ["N", "no", "", None, False, 0, "false"])
    def test_words_for_no(self, word):
        assert not parse(small_sheet(xnat=[("Anonymize", word)])).anonymize

    def test_lists_take_commas_spaces_and_several_cells(self):
        read = parse(
            small_sheet(
                xnat=[
                    ("SkipImageTypes", "dose_info, SCREEN SAVE;", "OTHER"),
                    ("Review", "burned in annotation,ScreenSave"),
                    (
                        "AllowFields",
                        "AccessionNumber, StudyDate  (0010, 0020)",
                        "DICOM:PatientSex",
                        "0010,0040,StudyDate",
                    ),
                ]
            )
        )
        assert read.skip_image_types == ("DOSE_INFO", "SCREEN SAVE", "OTHER")
        assert read.review == ("BurnedInAnnotation", "ScreenSave")
        assert read.allow_fields == ("AccessionNumber", "StudyDate", "0010,0020", "PatientSex", "0010,0040")

    def test_what_copies_keep_need_not_be_text(self):
        read = parse(small_sheet(xnat=[("AllowFields", "ReferencedImageSequence 0008,1140")]))
        assert read.allow_fields == ("ReferencedImageSequence", "0008,1140")

    def test_an_empty_list_is_empty(self):
        read = parse(small_sheet(xnat=[("SkipImageTypes", ""), ("Review",)]))
        assert read.skip_image_types == ()
        assert read.review == ()

    @pytest.mark.parametrize(
        ("cell", "kept"), [("", "none"), ("None", "none"), ("SHIFTED", "shifted"), ("full", "full")]
    )
    def test_retain_dates(self, cell, kept):
        assert parse(small_sheet(xnat=[("RetainDates", cell)])).retain_dates == kept

    def test_yes_and_no_settings_do_not_mix(self):
        names = ("Anonymize", "RetainPatientCharacteristics", "RetainDeviceIdentity", "CleanDescriptors")
        fields = (
            "anonymize",
            "retain_patient_characteristics",
            "retain_device_identity",
            "clean_descriptors",
        )
        for name, field in zip(names, fields, strict=True):
            read = parse(small_sheet(xnat=[(name, "yes")]))
            assert [other for other in fields if getattr(read, other)] == [field]

    def test_further_rows_captures_and_fields_are_listed(self):
        read = parse(
            small_sheet(
                paths=[("One", "{Site}-{ID}", "{Directory}", "{File}"), ("Two", "{ID}", "{Scan}", "{File}")],
                maps=[
                    *MAPS,
                    ("Site", "Path:Site"),
                    ("Weight", "DICOM:PatientWeight|ID"),
                    ("SessionLabel", "{DICOM:StudyID}"),
                ],
            )
        )
        assert read.rows == ("Subject", "Session", "Dataset", "Site", "Weight")
        assert read.further_rows == ("Site", "Weight")
        assert read.captures == ("Site", "ID", "Directory", "File", "Scan")
        assert read.headings["File"] == "Path:File"
        assert read.headings["Site"] == "Path:Site"
        assert read.headings["Scan"] == "Scan"
        assert read.dicom_fields == ("StudyDate", "PatientWeight", "StudyID")
        assert read.mapped_captures == ("ID", "Directory", "Site")
        assert read.value_headings == (
            *("Site", "Weight", "DICOM:PatientWeight", "DICOM:StudyID"),
            *("Path:Site", "ID", "Directory", "Path:File", "Scan"),
        )
        assert read.mappings[4].fields == ("DICOM:PatientWeight", "ID")


class TestProblems:
    def test_all_are_told_at_once_in_the_order_of_the_sheet(self):
        told = problems(
            paths=[("Nested", "{Subject Name}", "{Directory}", "{filename}")],
            maps=[
                ("Subject", "ID"),
                ("Session", "DICOM:StudyDat"),
                ("Dataset", "Directory"),
                ("SessionLabel", "{Visist}"),
            ],
            xnat=[
                ("Anonymize", "perhaps"),
                ("RetainDates", "yes"),
                ("AllowFields", "StudyDat"),
                ("Review", "All"),
            ],
        )
        cells = [problem.split(":")[0].removeprefix("Configuration ") for problem in told]
        assert cells[:4] == ["C1", "C11", "C12", "C14"]
        assert sorted(cells[4:]) == ["C21", "C22", "C23", "C24"]

    @pytest.mark.parametrize(
        ("maps", "said"),
        [
            ([("subject", "ID"), *MAPS[1:]], "B11: 'subject' has to be written Subject."),
            ([*MAPS, ("Session Label", "ID")], "B14: 'Session Label' has to be written SessionLabel"),
            ([*MAPS, ("Subject", "ID")], "B14: the row Subject appears twice (first in Configuration B11)"),
            ([*MAPS, ("Status", "ID")], "B14: 'Status' is the name of another column"),
            ([*MAPS, ("Visit", "ID")], "B14: 'Visit' is the name of another column"),
            ([*MAPS, ("DICOM:StudyDate", "ID")], "B14: 'DICOM:StudyDate' cannot be the name of a row"),
            ([*MAPS, ("{Site}", "ID")], "B14: '{Site}' cannot be the name of a row"),
            ([*MAPS, ("", "ID")], "B14: this row has no label"),
            ([*MAPS, ("Site",)], "B14: 'Site' has no value"),
            ([*MAPS, ("SessionLabel",)], "B14: 'SessionLabel' has no value"),
            (
                [MAPS[0], ("Sesion", "ID"), MAPS[2]],
                "no row Session; Configuration B12 says 'Sesion': write Session there",
            ),
            (MAPS[:2], "the Mappings section has no row Dataset; add it"),
        ],
    )
    def test_rows_of_mappings(self, maps, said):
        told = problems(maps=maps)
        assert len(told) == 1
        assert said in told[0]

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            (("server", "x"), "B22: there is no setting 'server'; write Server."),
            (("Anonymise", "yes"), "B22: there is no setting 'Anonymise'; write Anonymize."),
            (("Anonymization", "yes"), "write Anonymize."),
            (("Project", "Q"), "B22: the row Project appears twice (first in Configuration B21)"),
            (("Anonymize", "maybe"), "C22: 'maybe' is not a value for Anonymize; write yes or no."),
            (("RetainDates", 3.0), "C22: '3' is not a value for RetainDates; write none, shifted or full."),
            (
                ("Review", "Screensaver"),
                "C22: 'Screensaver' is not a value for Review; did you mean ScreenSave?",
            ),
            (("Review", "ScreenSave", "All"), "D22: 'All' is not a value for Review; use BurnedInAnnotation"),
            (
                ("AllowFields", "StudyDat"),
                "C22: 'StudyDat' is not a value for AllowFields; did you mean StudyDate?",
            ),
        ],
    )
    def test_rows_of_xnat(self, row, said):
        told = problems(xnat=[("Project", "P"), row])
        assert len(told) == 1
        assert said in told[0]

    def test_a_row_of_another_name_is_left_alone(self):
        assert parse(small_sheet(xnat=[("Contact", "Dr No"), ("", "a note")])).project == ""

    def test_pattern_sets(self):
        told = problems(paths=[("A", "{ID}", "{Directory}", "{f}"), ("", "x"), ("A", "y"), ("B",)])
        assert [problem.split(":")[0] for problem in told] == [
            "Configuration B2",
            "Configuration B3",
            "Configuration B4",
        ]

    def test_missing_sections_are_named_and_hide_what_follows_from_them(self):
        with pytest.raises(errors.ConfigurationError) as caught:
            parse([("Pathes", "A", "{ID}"), ("Mappings", "Subject", "ID"), ("XNAT", "Anonymize", "?")])
        told = caught.value.problems
        assert told[0] == "Configuration A1: there is no section 'Pathes'; write Paths."
        assert told[1].startswith("Configuration: there is no section Paths")
        assert told[2].startswith("Configuration C3: '?' is not a value for Anonymize")
        assert len(told) == 3

    def test_an_empty_sheet_lacks_both_sections(self):
        with pytest.raises(errors.ConfigurationError) as caught:
            parse([])
        assert len(caught.value.problems) == 2

    @given(
        st.lists(
            st.lists(
                st.sampled_from(
                    [
                        "",
                        "Paths",
                        "Mappings",
                        "XNAT",
                        "Subject",
                        "SessionLabel",
                        "ID",
                        "{ID}",
                        None,
                        3,
                        "{",
                        "**",
                    ]
                ),
                max_size=5,
            ),
            max_size=12,
        )
    )
    def test_any_sheet_is_read_or_has_problems(self, grid):
        try:
            told = parse(grid).rows
        except errors.ConfigurationError as error:
            told = error.problems
        assert told


class TestServerAndProject:
    def test_an_option_takes_precedence_over_the_sheet(self):
        read = parse(small_sheet())
        assert read.require_server_and_project() == ("https://x.org", "P")
        changed = read.with_options(server="https://y.org/xnat/", project="Q")
        assert changed.require_server_and_project() == ("https://y.org/xnat", "Q")
        assert read.with_options().require_server_and_project() == ("https://x.org", "P")

    @pytest.mark.parametrize(
        ("server", "said"),
        [
            ("xnat.uni.edu", "most likely https://xnat.uni.edu"),
            ("xnat.uni.edu:8443/x", "most likely https://xnat.uni.edu:8443/x"),
            ("http:/xnat.uni.edu", "most likely https://xnat.uni.edu"),
            ("ftp://xnat.uni.edu", "most likely https://xnat.uni.edu"),
            ("https://a b", "is not a web address"),
        ],
    )
    def test_a_server_that_is_no_address_is_told_what_to_write(self, server, said):
        for read, place in (
            (parse(small_sheet(xnat=[("Project", "P"), ("Server", server)])), "Configuration C22: "),
            (parse(small_sheet()).with_options(server=server), "--server: "),
        ):
            with pytest.raises(errors.ConfigurationError, match="web address") as caught:
                read.require_server_and_project()
            assert str(caught.value).startswith(place)
            assert said in str(caught.value)

    def test_a_password_in_the_address_is_refused_and_not_repeated(self):
        with pytest.raises(errors.ConfigurationError) as caught:
            parse(small_sheet()).with_options(server="https://me:secret@x.org").require_server_and_project()
        assert "secret" not in str(caught.value)

    def test_without_rows_the_section_and_the_options_are_named(self):
        with pytest.raises(errors.ConfigurationError, match=r"no row Server.*--server"):
            parse(small_sheet(xnat=[])).require_server_and_project()
