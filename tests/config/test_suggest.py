"""What a scan proposes for the Paths section when nothing matched."""

from xnatuploader.config import patterns, suggest
from xnatuploader.config.lines import LabelledRow


def pattern_set(label: str, *cells: str) -> LabelledRow:
    return LabelledRow(label, "", tuple(("", cell) for cell in cells))


class TestSuggestions:
    def test_the_commonest_shapes_with_most_dicom_come_first(self):
        paths = [f"P{n}/CT/{n}.dcm" for n in range(5)] + [f"{n}.txt" for n in range(9)] + ["a/b/c/IM1", "x/y"]
        dicom = [path.endswith((".dcm", "IM1")) for path in paths]
        shapes = suggest.suggest(paths, dicom)
        assert [(shape.form, shape.files, shape.dicom) for shape in shapes] == [
            ("folder/folder/*.dcm", 5, 5),
            ("folder/folder/folder/file", 1, 1),
            ("file", 9, 0),
        ]

    def test_the_row_of_a_shape_fits_its_files_and_captures_what_mappings_need(self):
        for path in ("a.dcm", "a/b.dcm", "a/b/c.DCM", "a/b/c/d", "a/b/c/d/e/f.ima"):
            (shape,) = suggest.suggest([path], [True])
            result = patterns.compile_sets([pattern_set(shape.label, *shape.row)]).match(path)
            assert isinstance(result, patterns.PathMatch)
            assert set(shape.lacking) == {"ID", "Directory"} - set(result.values)

    def test_needed_names_are_given_to_folders_from_the_top(self):
        (shape,) = suggest.suggest(["1/2/3/4/f.dcm"], [True], needed=("Site", "ID", "Scan"))
        assert shape.row == ("{Site}", "{ID}", "*", "{Scan}", "{filename}.dcm")
        (shape,) = suggest.suggest(["1/f.dcm"], [True], needed=("Site", "ID", "Scan"))
        assert (shape.row, shape.lacking) == (("{Site}", "{filename}.dcm"), ("ID", "Scan"))

    def test_a_shape_reads_as_advice(self):
        (shape,) = suggest.suggest(["1/2/f.dcm"] * 1200, [True] * 1200)
        assert list(shape.lines()) == [
            "folder/folder/*.dcm: 1,200 files, 1,200 with DICOM",
            "    Folders2 | {ID} | {Directory} | {filename}.dcm",
        ]

    def test_a_shape_with_too_few_folders_names_what_it_lacks(self):
        (shape,) = suggest.suggest(["1/f.dcm"], [True], needed=("ID", "Directory", "filename"))
        assert (
            list(shape.lines())[-1] == "    (too few folders for Directory: change the Mappings that use it)"
        )

    def test_labels_are_new(self):
        paths = ["a/b.dcm", "a/b"]
        shapes = suggest.suggest(paths, [True, True], taken=("Folders1",))
        assert [shape.label for shape in shapes] == ["Folders1-2", "Folders1-3"]

    def test_nothing_of_a_path_is_repeated(self):
        shapes = suggest.suggest(["Doe/John.Doe", "Doe.dcm/John.1.2.3"], [True, True])
        assert "Doe" not in repr(shapes)
        assert "John" not in repr(shapes)
