import os
import pickle
import subprocess
import sys
import textwrap
import threading
import zlib

import hypothesis
import hypothesis.strategies as st
import pydicom
import pytest

from tests.helpers import builders, fuzzing
from xnatuploader import records
from xnatuploader.dicom import elements, reader

RULES = reader.Rules()
NOTHING = reader.Rules(frozenset(), frozenset())


def reading(tmp_path, rules=RULES, fields=(), **elements):
    return reader.read(builders.write_dicom(tmp_path / "file.dcm", **elements), fields, rules)


def reading_of_bytes(tmp_path, data, fields=(), rules=RULES):
    path = tmp_path / "file.dcm"
    path.write_bytes(data)
    return reader.read(path, fields, rules)


# --- values ---


def test_a_reading_has_the_columns_of_the_files_sheet_and_what_was_asked_for(tmp_path):
    got = reading(
        tmp_path, fields=["PatientID", "Rows", "0018,0050", "PatientComments"], SliceThickness="5.0"
    )
    assert got.status is records.Status.EMPTY
    assert got.message == ""
    assert dict(got.values) == {
        "Modality": "CT",
        "StudyDate": "20200312",
        "SeriesNumber": "2",
        "SeriesDescription": "Axial 5mm",
        "StudyDescription": "Chest",
        "InstanceNumber": "1",
        "Manufacturer": "ACME",
        "ManufacturerModelName": "Scanner 1",
        "StationName": "CT01",
        "StudyInstanceUID": builders.uid("study study"),
        "SeriesInstanceUID": builders.uid("series study/series"),
        "SOPInstanceUID": builders.uid("instance study/series/1"),
        "SOPClassUID": builders.SOP_CLASSES["CT"],
        "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "BurnedInAnnotation": "",
        "PatientID": "0001",
        "Rows": "8",
        "0018,0050": "5.0",
        "PatientComments": "",
    }


@pytest.mark.parametrize("syntax", builders.SYNTAXES)
@pytest.mark.parametrize("private", [0, 300])
def test_every_transfer_syntax_gives_the_same_values(tmp_path, syntax, private):
    plain = reading(tmp_path, fields=["Rows", "PatientName"])
    other = reading(tmp_path, fields=["Rows", "PatientName"], transfer_syntax=syntax, private=private)
    assert dict(other.values) == dict(plain.values)
    assert other.status is records.Status.EMPTY


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_an_old_export_without_preamble_is_read(tmp_path, syntax):
    got = reading(tmp_path, transfer_syntax=syntax, meta=False)
    assert (got.status, got.values["StudyDate"]) == (records.Status.EMPTY, "20200312")


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("StudyDate", "***", "***"),
        ("StudyDate", "1994.11.05", "1994.11.05"),
        ("StudyDate", "", ""),
        ("StudyDate", None, ""),
        (
            "StudyInstanceUID",
            "{6B29FC40-CA47-1067-B31D-00DD010662DA}",
            "{6B29FC40-CA47-1067-B31D-00DD010662DA}",
        ),
        ("StudyDescription", ["Chest", "Abdo"], "Chest\\Abdo"),
        ("SeriesNumber", "007", "007"),
        ("PixelSpacing", ["0.50", "1e-1"], "0.50\\1e-1"),
        ("FrameIncrementPointer", 0x00181063, "(0018,1063)"),
        ("Rows", 512, "512"),
        ("ExposedArea", [3, 4], "3\\4"),
        ("PatientName", "Müller^Jörg", "Müller^Jörg"),
        ("PatientID", " 0001 ", " 0001"),
        ("StudyDescription", "=HYPERLINK(1)", "=HYPERLINK(1)"),
        ("StudyDescription", "bell\x07", "bell\x07"),
        ("PatientComments", "a\\b", "a\\b"),
    ],
)
def test_values_stay_as_they_stand_and_are_text(tmp_path, keyword, value, expected):
    got = reading(tmp_path, fields=[keyword], **{keyword: value})
    assert got.values[keyword] == expected
    assert got.status is records.Status.EMPTY


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_of_all_the_world_are_decoded(tmp_path, charset, name):
    got = reading(tmp_path, fields=["PatientName"], SpecificCharacterSet=charset, PatientName=name)
    assert got.values["PatientName"] == name


@pytest.mark.parametrize(
    "charset", [b"ISO_IR 192", b"GB18030 ", b"nonsense", b"utf_16", b"ISO 2022 IR 87", b"idna"]
)
def test_what_cannot_be_decoded_is_still_text(charset):
    assert reader.text("LO", b"M\xfcller \x1b$B\xff\xff\x80 ", charset)


@hypothesis.given(
    st.sampled_from(sorted({*pydicom.valuerep.STANDARD_VR, "", "XX"})),
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"ISO_IR 100", b"ISO_IR 192", b"\\ISO 2022 IR 87", b"ISO_IR 13", b"punycode", b"\xff"]
    ),
    st.booleans(),
)
def test_no_bytes_make_the_text_fail(vr, value, charset, little_endian):
    assert isinstance(reader.text(vr, value, charset, little_endian), str)


def test_binary_data_and_sequences_are_no_text():
    for vr in ("OB", "OW", "SQ", "OF"):
        assert reader.text(vr, b"abcd") == ""
    assert reader.text("UN", b"\x01\x02ab") == ""
    assert reader.text("UN", b"text \0") == "text"


# --- names of fields ---


def test_the_fields_that_are_known_without_pydicom_are_those_of_its_dictionary():
    for name, (tag, vr) in reader._COMMON.items():
        assert (pydicom.datadict.tag_for_keyword(name), pydicom.datadict.dictionary_VR(tag)) == (tag, vr)
    assert set(reader._COMMON) >= {*records.DICOM_FIELDS, *reader.ALWAYS}


def test_keywords_and_tags_are_known():
    assert (
        reader.tag_of("StudyDate") == reader.tag_of("0008,0020") == reader.tag_of("(0008,0020)") == 0x00080020
    )
    assert reader.keyword_known("PatientID")
    assert reader.keyword_known("0019,10aB")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Studydate",
        "0008",
        "0008,002",
        "PixelData",
        "ReferencedStudySequence",
        "0002,0010",
        "7FE0,0010",
        "x,y",
    ],
)
def test_a_field_that_cannot_be_used_is_known_as_such(name):
    assert not reader.keyword_known(name)


# --- what may be sent ---


def sop(suffix):
    return f"1.2.840.10008.5.1.4.1.1.{suffix}"


@pytest.mark.parametrize(
    ("sop_class", "word"),
    [
        *((sop(f"88.{i}"), "structured report") for i in (11, 22, 33, 34, 50, 65, 67, 68, 76)),
        (sop("88.59"), "key object"),
        (sop("104.1"), "PDF"),
        (sop("104.2"), "CDA"),
        (sop("104.3"), "STL"),
        (sop("104.4"), "OBJ"),
        (sop("104.5"), "MTL"),
        *((sop(f"11.{i}"), "presentation state") for i in range(1, 13)),
        ("1.2.840.10008.1.3.10", "DICOMDIR"),
    ],
)
def test_objects_that_are_no_images_are_skipped_by_their_class(tmp_path, sop_class, word):
    got = reading(tmp_path, SOPClassUID=sop_class, pixels=None)
    assert got.status is records.Status.SKIPPED
    assert word in got.message


@pytest.mark.parametrize("suffix", ["2", "4", "128", "481.3", "66.4", "12.1", "1", "1.1", "66", "77.1.6"])
def test_images_and_what_belongs_to_them_may_be_sent(tmp_path, suffix):
    assert reading(tmp_path, SOPClassUID=sop(suffix)).status is records.Status.EMPTY


def test_a_dicomdir_is_known_by_its_file_meta_in_any_syntax(tmp_path):
    for name, data in fuzzing.pydicoms_own().items():
        if "DICOMDIR" in name:
            got = reading_of_bytes(tmp_path, data)
            assert (got.status, "DICOMDIR" in got.message) == (records.Status.SKIPPED, True), name


@pytest.mark.parametrize("at", range(5))
def test_a_listed_image_type_is_skipped_at_any_position_whatever_its_case(tmp_path, at):
    types = ["DERIVED", "SECONDARY", "A", "B"]
    types.insert(at, "Dose_Info ")
    got = reading(tmp_path, ImageType=types)
    assert got.status is records.Status.SKIPPED
    assert "DOSE_INFO" in got.message
    assert "SkipImageTypes" in got.message


def test_an_image_type_that_only_contains_a_listed_one_is_sent(tmp_path):
    assert reading(tmp_path, ImageType=["ORIGINAL", "DOSE_INFO_2"]).status is records.Status.EMPTY
    assert reading(tmp_path, NOTHING, ImageType=["DERIVED", "DOSE_INFO"]).status is records.Status.EMPTY


@pytest.mark.parametrize("value", ["", None])
def test_a_file_without_sop_class_is_skipped(tmp_path, value):
    got = reading(tmp_path, SOPClassUID=value)
    assert got.status is records.Status.SKIPPED
    assert "SOP Class" in got.message


REVIEWED = {
    "BurnedInAnnotation": {"BurnedInAnnotation": "YES"},
    "ScreenSave": {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    "SecondaryCapture": {"SOPClassUID": sop("7")},
}


@pytest.mark.parametrize("word", REVIEWED)
def test_pixels_that_may_show_the_patient_wait_for_a_person(tmp_path, word):
    got = reading(tmp_path, reader.Rules(frozenset(), frozenset({word})), **REVIEWED[word])
    assert got.status is records.Status.REVIEW
    assert "Y" in got.message
    assert got.values["StudyDate"] == "20200312"
    others = frozenset(REVIEWED) - {word}
    assert (
        reading(tmp_path, reader.Rules(frozenset(), others), **REVIEWED[word]).status is records.Status.EMPTY
    )


def test_a_saved_screen_is_known_without_case_and_with_underscore(tmp_path):
    rules = reader.Rules(frozenset(), frozenset({"ScreenSave", "BurnedInAnnotation"}))
    assert reading(tmp_path, rules, ImageType=["A", "B", "screen_save"]).status is records.Status.REVIEW
    assert reading(tmp_path, rules, BurnedInAnnotation="YES").status is records.Status.REVIEW
    assert reading(tmp_path, rules, BurnedInAnnotation="NO").status is records.Status.EMPTY


@pytest.mark.parametrize("suffix", ["7", "7.1", "7.2", "7.3", "7.4"])
def test_every_secondary_capture_class_waits_for_a_person(tmp_path, suffix):
    assert reading(tmp_path, SOPClassUID=sop(suffix)).status is records.Status.REVIEW


def test_skipping_goes_before_review(tmp_path):
    got = reading(tmp_path, SOPClassUID=sop("104.1"), BurnedInAnnotation="YES")
    assert got.status is records.Status.SKIPPED


# --- files with an error ---


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"just notes", "text"),
        (b"%PDF-1.4\n%\xe2\xe3", "PDF"),
        (b"\xff\xd8\xff\xe0" + bytes(300), "JPEG"),
        (b"PK\x03\x04" + bytes(300), "ZIP"),
        (b"\x5c\x01\x00\x00" + bytes(344), "NIfTI"),
        (bytes(1000), "zeros"),
        (bytes(range(256)) * 4, "Not a DICOM file."),
    ],
)
def test_other_files_are_unmatched_and_named_for_what_they_are(tmp_path, data, words):
    got = reading_of_bytes(tmp_path, data)
    assert got.status is records.Status.UNMATCHED
    assert words in got.message
    assert dict(got.values) == {}


def test_an_empty_file_is_skipped(tmp_path):
    got = reading_of_bytes(tmp_path, b"")
    assert (got.status, "empty" in got.message) == (records.Status.SKIPPED, True)


def test_both_deflated_transfer_syntaxes_are_inflated(tmp_path):
    plain = builders.dicom_bytes(transfer_syntax="deflated")
    referenced = plain.replace(
        b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95"
    )  # JPIP Referenced Deflate
    assert referenced != plain
    assert reading_of_bytes(tmp_path, referenced) == reading_of_bytes(tmp_path, plain)
    assert reading_of_bytes(tmp_path, referenced).values["StudyDate"] == "20200312"


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "deflated"])
def test_a_file_cut_before_the_last_needed_field_is_skipped_wherever_it_was_cut(tmp_path, syntax):
    whole = builders.dicom_bytes(transfer_syntax=syntax, BurnedInAnnotation="NO", pixels=None)
    for size in range(140, len(whole) - 30, 7):
        got = reading_of_bytes(tmp_path, whole[:size])
        # Cut between two elements behind the series UID it looks like a header that has no more to say.
        assert got.status is records.Status.SKIPPED or got.values["SeriesInstanceUID"], size


def test_a_file_cut_within_its_header_says_so(tmp_path):
    whole = builders.dicom_bytes()
    for data in (builders.truncated_before(whole, "StudyInstanceUID"), whole[:-800], whole[:200]):
        got = reading_of_bytes(tmp_path, data)
        assert (got.status, "not copied completely" in got.message) == (records.Status.SKIPPED, True)


def test_a_file_cut_behind_the_last_needed_field_is_read(tmp_path):
    whole = builders.dicom_bytes(pixels=100_000)
    got = reading_of_bytes(tmp_path, whole[:-50_000])
    assert got.status is records.Status.EMPTY


def hostile():
    data = builders.dicom_bytes()
    e, undefined = builders.element, elements.UNDEFINED
    yield "nested sequences", builders.nested_sequences(20_000)
    yield "nested sequences, implicit", builders.nested_sequences(20_000, explicit=False)
    yield "unknown VR", builders.with_vr(data, "StudyDate", b"QQ")
    yield "NUL in the character set", builders.raw_file(e("SpecificCharacterSet", "CS", b"A\0B "))
    yield "character set as a number", builders.raw_file(e("SpecificCharacterSet", "US", b"\1\0"))
    yield "length of 4 GB", builders.raw_file(e(0x00081110, "SQ", b"", length=undefined - 1))
    yield "wanted value of 4 GB", builders.raw_file(e("StudyDate", "UT", b"", length=undefined - 1))
    yield "text that never ends", builders.raw_file(e(0x00091010, "UT", b"x" * 5000, length=undefined))
    yield "file meta of rubbish", b"\0" * 128 + b"DICM" + b"\2\0\0\0QQ\xff\xff" * 9
    yield "file meta only", builders.raw_file()
    yield "file meta with a wrong number", builders.raw_file().replace(b"UL\4\0", b"FD\4\0")
    yield "deflated rubbish", builders.raw_file(b"\xff\xfe\xfd" * 50, transfer_syntax="deflated")
    yield "prefix only", b"\0" * 128 + b"DICM"


@pytest.mark.parametrize(
    ("what", "data"), list(hostile()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_file_makes_reading_fail(tmp_path, what, data):
    got = reading_of_bytes(tmp_path, data)
    assert got.status is records.Status.SKIPPED or got.values["StudyDate"]
    if got.status is records.Status.SKIPPED:
        assert got.message.endswith(".")


@pytest.mark.parametrize(
    "error",
    [
        RecursionError(),
        MemoryError(),
        NotImplementedError("Unknown VR"),
        zlib.error("bad"),
        ValueError("embedded null byte"),
        pydicom.errors.InvalidDicomError(),
        pydicom.errors.BytesLengthException(),
        OSError(5, "Input/output error"),
        EOFError(),
        UnicodeDecodeError("ascii", b"", 0, 1, ""),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_pydicom_raises_becomes_a_row_with_a_reason(tmp_path, monkeypatch, error):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(pydicom.filereader, "read_partial", fail)
    got = reading(tmp_path, transfer_syntax="big")
    assert got.status is records.Status.SKIPPED
    assert got.message.endswith(".")


def test_ctrl_c_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    def stop(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(pydicom.filereader, "read_partial", stop)
    with pytest.raises(KeyboardInterrupt):
        reading(tmp_path, transfer_syntax="big")


def test_a_vanished_file_is_missing(tmp_path):
    for path in (tmp_path / "gone.dcm", tmp_path / "no folder" / "gone.dcm"):
        assert reader.read(path, [], RULES).status is records.Status.MISSING


def test_a_folder_a_name_with_nul_and_a_file_without_right_are_skipped(tmp_path):
    assert reader.read(tmp_path, [], RULES).status is records.Status.SKIPPED
    assert reader.read(f"{tmp_path}/a\0b", [], RULES).status is records.Status.SKIPPED

    def refused(path):
        raise PermissionError(13, "Permission denied")

    status, message, _ = reader.Reader(reader.plan([], RULES), refused).read("x")
    assert (status, "may not read" in message) == ("skipped", True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_that_took_a_files_place_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    thread = threading.Thread(
        target=lambda: got.append(reader.read(tmp_path / "pipe", [], RULES)), daemon=True
    )
    thread.start()
    thread.join(20)
    assert got[0].status is records.Status.SKIPPED
    assert "pipe" in got[0].message


def test_undecodable_file_names_are_read(tmp_path):
    name = os.fsencode(tmp_path) + b"/M\xfcller\x01.dcm"
    try:
        with open(name, "wb") as target:  # noqa: PTH123  a name of bytes is the point
            target.write(builders.dicom_bytes())
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert reader.read(os.fsdecode(name), [], RULES).status is records.Status.EMPTY


def run_limited(code, *arguments, megabytes=400):
    """Run code in a process that may not take more memory than that."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes} << 20,) * 2)\n"
    return subprocess.run(
        [sys.executable, "-c", limit + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory the way Linux does")
@pytest.mark.parametrize("plain", [True, False])
def test_a_deflate_bomb_of_600_mb_takes_little_memory(tmp_path, plain):
    before = (
        [] if plain else [builders.element("StudyDate", "DA", b"20200312")] * 2
    )  # twice: for pydicom to read
    bomb = builders.write_deflate_bomb(tmp_path / "bomb.dcm", 600, before=before)
    code = """
    import sys
    from xnatuploader.dicom import reader
    got = reader.read(sys.argv[1], [], reader.Rules())
    # VmHWM, because ru_maxrss begins with what the parent had at its fork.
    with open("/proc/self/status") as told:
        peak = next(int(line.split()[1]) for line in told if line.startswith("VmHWM"))
    print(got.status, peak // 1024)
    """
    run = run_limited(code, bomb)
    assert run.returncode == 0, run.stderr
    status, peak = run.stdout.split()
    assert status == "skipped"
    assert int(peak) < 150


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory the way Linux does")
def test_lengths_of_gigabytes_in_a_file_of_gigabytes_take_little_memory_and_time(tmp_path):
    path = tmp_path / "sparse.dcm"
    for element in (
        builders.element("StudyDate", "UT", b"", length=3 << 30),
        builders.element(0x00091010, "UT", b"", length=elements.UNDEFINED),
    ):
        with path.open("wb") as target:
            target.write(builders.raw_file(element))
            target.truncate(4 << 30)
        code = """
        import sys
        from xnatuploader.dicom import reader
        print(reader.read(sys.argv[1], [], reader.Rules()).status)
        """
        run = run_limited(code, path)
        assert (run.stdout.strip(), run.returncode) == ("skipped", 0), run.stderr


# --- in worker processes ---


def test_a_reader_made_from_a_pickled_plan_reads_the_same_without_pydicom(tmp_path):
    path = builders.write_dicom(tmp_path / "file.dcm", private=5, transfer_syntax="implicit")
    plan = reader.plan(["PatientName"], RULES)
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    code = """
    import pathlib, pickle, sys
    from xnatuploader.dicom import reader
    plan = pickle.loads(pathlib.Path(sys.argv[2]).read_bytes())
    status, message, cells = reader.Reader(plan).read(sys.argv[1])
    assert "pydicom" not in sys.modules
    print(cells[plan.fields.index("PatientName")])
    """
    run = run_limited(code, path, tmp_path / "plan") if sys.platform == "linux" else None
    if run is None:
        pytest.skip("runs where memory can be limited")
    assert run.stdout.strip() == "Doe^John", run.stderr


def test_files_that_are_not_dicom_are_told_apart_without_pydicom(tmp_path):
    """Whole folders of lists and notes lie beside the images; worker processes stay small with them too."""
    code = """
    import sys
    from xnatuploader.dicom import header
    assert not any(map(header.looks_like_dicom, (b"PATIENT;SEX;AGE " * 9, b"SIMPLE = T, BITPIX " * 9, bytes(99))))
    assert "pydicom" not in sys.modules
    print("small")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.strip() == "small", run.stderr


def test_files_of_a_series_share_their_texts(tmp_path):
    same = reader.Reader(reader.plan([], RULES))
    one, two = (same.read(str(builders.write_dicom(tmp_path / name, instance=name))) for name in ("1", "2"))
    at = reader.plan([], RULES).fields.index("StudyInstanceUID")
    assert one[2][at] is two[2][at]
    assert one[2] != two[2]


def test_messages_hold_no_path(tmp_path):
    for data in (b"", b"text", builders.dicom_bytes()[:300]):
        assert str(tmp_path) not in reading_of_bytes(tmp_path, data).message
