import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from tests.helpers import builders, fuzzing
from xnatuploader.dicom import elements, header

STUDY_DATE, PATIENT_ID, INSTANCE = 0x00080020, 0x00100020, 0x00200013
WANTED = frozenset({STUDY_DATE, PATIENT_ID, INSTANCE})
FILES = fuzzing.seeds() | fuzzing.pydicoms_own()


def walked(data, wanted=WANTED, read=None):
    """Walk a whole file as `dicom.Reader` does; `read` counts or bounds what is asked for."""
    first = data[: header.FIRST_READ]
    begin = header.begin(first)
    if begin is None:
        return None
    source = read or fuzzing.bytes_source(data)
    return header.walk(first, begin.offset, begin.implicit, wanted, max(wanted), source)


class Counted:
    """A source that knows what was asked of it."""

    def __init__(self, data):
        self.data = data
        self.asked = []

    def __call__(self, offset, size):
        self.asked.append((offset, size))
        return self.data[offset : offset + size]


@pytest.mark.parametrize("name", ["explicit", "implicit", "jpeg"])
@pytest.mark.parametrize("kind", ["", " private", " sequence", " undefined"])
def test_ordinary_files_are_plain_in_every_little_endian_syntax(name, kind):
    found = walked(FILES[name + kind])
    assert found is not None
    assert {tag: value for tag, (_, value) in found.elements.items()} == {
        STUDY_DATE: b"20200312",
        PATIENT_ID: b"0001",
        INSTANCE: b"1 ",
    }


@pytest.mark.parametrize("name", FILES)
def test_the_walk_and_pydicom_agree_on_every_test_file(name):
    assert fuzzing.difference(FILES[name], fuzzing.Tally()) == ""


@pytest.mark.slow
def test_the_walk_and_pydicom_agree_on_mutated_headers(tmp_path):
    tally = fuzzing.Tally()
    assert list(fuzzing.run(1500, 2, tmp_path, tally)) == []
    assert tally.counts["walked"] > 400
    assert tally.counts["equal text"] > 4000


def test_the_comparison_sees_a_walk_that_is_wrong(tmp_path, monkeypatch):
    right = header.walk

    def wrong(*arguments):
        found = right(*arguments)
        return found and header.Header({tag: (vr, value[:-1]) for tag, (vr, value) in found.elements.items()})

    monkeypatch.setattr(header, "walk", wrong)
    assert list(fuzzing.run(20, 2, tmp_path, fuzzing.Tally()))


def test_an_old_export_without_preamble_and_meta_is_plain():
    for syntax in ("explicit", "implicit"):
        found = walked(builders.dicom_bytes(meta=False, transfer_syntax=syntax))
        assert found is not None
        assert found.elements[PATIENT_ID][1] == b"0001"


@pytest.mark.parametrize(
    "data", [b"", b"DICM", b"0008,0005", b"<html>" * 90, b"\x08\0\x05\0" * 50, bytes(500)]
)
def test_other_files_do_not_look_like_dicom(data):
    assert not header.looks_like_dicom(data)


@pytest.mark.parametrize("syntax", builders.SYNTAXES)
def test_dicom_looks_like_dicom(syntax):
    assert header.looks_like_dicom(builders.dicom_bytes(transfer_syntax=syntax))
    if syntax != "deflated":
        assert header.looks_like_dicom(builders.dicom_bytes(transfer_syntax=syntax, meta=False))


def unusual():
    data = builders.dicom_bytes()
    e = builders.element
    date, late = e("StudyDate", "DA", b"20200312"), e("SeriesNumber", "IS", b"2 ")
    yield "big endian", builders.dicom_bytes(transfer_syntax="big")
    yield "unknown VR", builders.with_vr(data, "StudyDate", b"QQ")
    yield "VR of zeros", builders.with_vr(data, "StudyDate", b"\0\0")
    yield "value longer than the file", builders.with_length(data, "StudyDate", 0xFFFF)
    yield "tag twice", builders.raw_file(date, date, late)
    yield "tags out of order", builders.raw_file(e("Modality", "CS", b"CT"), date, late)
    yield "cut in a tag", builders.raw_file(date, e("PatientID", "LO", b"1 ")[:3])
    yield "cut in a value", builders.raw_file(date, e("PatientID", "LO", b"0001")[:-2])
    yield "cut behind what is skipped", builders.raw_file(date, e(0x00091001, "OB", b"", length=500))
    yield (
        "text of undefined length",
        builders.raw_file(date, e(0x00091010, "UT", b"", length=elements.UNDEFINED)),
    )
    yield "deep nesting", builders.nested_sequences(5000)
    yield "deep nesting, implicit", builders.nested_sequences(5000, explicit=False)
    yield "implicit announced, explicit found", builders.raw_file(date, transfer_syntax="implicit")
    yield "no transfer syntax", b"\0" * 128 + b"DICM" + date
    yield "command set", builders.raw_file(e(0x00000002, "UI", b"1.2 "), date)


@pytest.mark.parametrize(
    ("what", "data"), list(unusual()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_unusual_is_left_to_pydicom(what, data):
    assert walked(data) is None


def test_a_file_that_ends_between_two_elements_is_said_to_have_ended():
    found = walked(builders.raw_file(builders.element("StudyDate", "DA", b"20200312")))
    assert found == header.Header({STUDY_DATE: (b"DA", b"20200312")}, ended=True)


def test_the_walk_ends_at_the_last_wanted_tag_whatever_follows():
    for tail in (b"", b"\xff", b"rubbish" * 99):
        data = builders.raw_file(builders.element("InstanceNumber", "IS", b"7 "), tail)
        found = walked(data)
        assert found is not None
        assert found.elements == {INSTANCE: (b"IS", b"7 ")}
        assert not found.ended


def test_a_large_ct_file_costs_one_read_of_8_kb():
    read = Counted(builders.dicom_bytes(pixels=512 * 1024))
    assert walked(read.data, frozenset(fuzzing.WANTED), read) is not None
    assert read.asked == []


def test_long_values_are_skipped_without_being_read():
    blob = builders.element(0x00091010, "OB", bytes(1_000_000))
    data = builders.raw_file(
        builders.element("StudyDate", "DA", b"20200312"),
        blob,
        builders.element("InstanceNumber", "IS", b"7 "),
    )
    read = Counted(data)
    found = walked(data, read=read)
    assert found is not None
    assert found.elements[INSTANCE] == (b"IS", b"7 ")
    assert sum(size for _, size in read.asked) <= header.STEP


def test_a_wanted_value_may_reach_beyond_the_first_read():
    long_id = b"x" * 20_000
    data = builders.raw_file(
        builders.element("PatientID", "LO", long_id), builders.element("StudyID", "SH", b"1 ")
    )
    found = walked(data)
    assert found is not None
    assert found.elements[PATIENT_ID] == (b"LO", long_id)


def test_elements_across_the_border_of_two_reads_are_found_wherever_the_border_falls():
    for filling in range(header.FIRST_READ - 260, header.FIRST_READ - 140):
        data = builders.raw_file(
            builders.element("StudyDate", "DA", b"20200312"),
            builders.element(0x00091010, "OB", bytes(filling)),
            builders.element("PatientID", "LO", b"0001"),
            builders.element("InstanceNumber", "IS", b"7 "),
        )
        found = walked(data)
        assert found is not None
        assert set(found.elements) == WANTED


def test_sequences_of_undefined_length_in_un_are_walked_as_implicit_vr():
    item = builders.element(0x00091101, "", b"ab", explicit=False)
    head, tail = struct.pack("<HHL", 0xFFFE, 0xE000, len(item)), struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    sequence = builders.element(0x00091010, "UN", b"", length=elements.UNDEFINED) + head + item + tail
    found = walked(builders.raw_file(sequence, builders.element("InstanceNumber", "IS", b"7 ")))
    assert found is not None
    assert found.elements == {INSTANCE: (b"IS", b"7 ")}


def test_inflating_keeps_to_little_memory_and_stops_at_its_limit(tmp_path):
    data = builders.write_deflate_bomb(tmp_path / "bomb", 64).read_bytes()
    begin = header.begin(data)
    assert begin is not None
    tracemalloc.start()
    try:
        source = header.InflatedSource(fuzzing.bytes_source(data), begin.offset, 32 << 20)
        assert source(20 << 20, 10) == bytes(10)
        with pytest.raises(header.HeaderTooLarge):
            source(40 << 20, 10)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_inflated_bytes_are_those_that_were_packed():
    plain = bytes(range(256)) * 2000
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"head" + packer.compress(plain) + packer.flush()
    source = header.InflatedSource(fuzzing.bytes_source(packed), 4, 1 << 30)
    for offset in (0, 5, 70_000, 69_999, 400_000, len(plain) - 3, len(plain) - 1, len(plain)):
        assert source(offset, 9) == plain[offset : offset + 9]


@pytest.mark.parametrize("positioned", [True, False])
def test_a_files_bytes_come_the_same_with_and_without_positioned_reads(tmp_path, monkeypatch, positioned):
    if not positioned:
        monkeypatch.delattr(header.os, "pread", raising=False)  # as on Windows
    path: Path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    handle = header.open_file(str(path))
    try:
        source = header.file_source(handle)
        assert source(190, 50) == bytes(range(190, 200))
        assert source(3, 4) == bytes(range(3, 7))
        assert source(500, 4) == b""
    finally:
        header.os.close(handle)


def test_storage_that_answers_in_pieces_is_asked_again(tmp_path, monkeypatch):
    path: Path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    pread = header.os.pread
    monkeypatch.setattr(header.os, "pread", lambda handle, size, offset: pread(handle, min(size, 7), offset))
    handle = header.open_file(str(path))
    try:
        assert header.file_source(handle)(10, 100) == bytes(range(10, 110))
    finally:
        header.os.close(handle)


def test_a_damaged_character_set_is_left_to_pydicom():
    data = builders.raw_file(
        builders.element("SpecificCharacterSet", "CS", b"ISO\0IR 100"),
        builders.element("StudyDate", "DA", b"2020"),
    )
    assert header.begin(data) is not None
    assert walked(data, WANTED | {elements.CHARACTER_SET}) is None


@pytest.mark.parametrize("vr", ["US", "OB", "zz"])
def test_pixel_data_that_hold_an_element_instead_of_fragments_are_malformed(vr):
    """They do not count as cut off: reading on would not find their end."""
    data = builders.element("Rows", vr, bytes(20))

    with pytest.raises(elements.Malformed, match="fragments"):
        elements.end_of_fragments(lambda at, size: data[at : at + size], 0, len(data), elements.EXPLICIT)
