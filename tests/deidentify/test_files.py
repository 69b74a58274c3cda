"""Whole files through the cleaner: encodings, pixel data, marks, refusals, large files, other processes."""

import concurrent.futures
import io
import os
import pickle
import struct
import zlib

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import builders
from xnatuploader.deidentify import source
from xnatuploader.deidentify.cleaner import Cleaner, NoCopy
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy
from xnatuploader.deidentify.source import CleanCopy, OriginalChanged
from xnatuploader.records import Status

KEY = Key(bytes(range(32)))
BASIC = Cleaner(Policy(), KEY)
DESCRIPTORS = Cleaner(Policy(clean_descriptors=True), KEY)
CT_CLASS = builders.element("SOPClassUID", "UI", b"1.2.840.10008.5.1.4.1.1.2\0")
INSTANCE = builders.element("SOPInstanceUID", "UI", b"1.2.3.45")
ITEM_UNDEFINED = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


@pytest.fixture
def clean(tmp_path):
    """Clean bytes as a file; return what `Cleaner.clean` returns."""

    def run(data, cleaner=BASIC, subject="S1"):
        path = tmp_path / "original.dcm"
        path.write_bytes(data)
        return cleaner.clean(path, subject)

    return run


def copy_of(result):
    assert isinstance(result, CleanCopy), result
    data = result.data()
    assert len(data) == result.size
    return pydicom.dcmread(io.BytesIO(data))


def refusal(result):
    assert isinstance(result, NoCopy), result
    return result


# --- encodings and pixel data ---


@pytest.mark.parametrize("syntax", builders.SYNTAXES)
def test_every_transfer_syntax_stays_and_its_pixels_are_identical(clean, syntax):
    original = builders.dicom_bytes(
        transfer_syntax=syntax,
        pixels=(32, 32),
        private=30,
        ReferencedImageSequence=[builders.dataset(pixels=None)],
        StudyDescription="Chest of Doe",
    )
    before = pydicom.dcmread(io.BytesIO(original))

    copy = copy_of(clean(original, DESCRIPTORS))

    assert copy.file_meta.TransferSyntaxUID == builders.SYNTAXES[syntax]
    assert copy.PixelData == before.PixelData
    assert copy["PixelData"].is_undefined_length == before["PixelData"].is_undefined_length
    assert (copy.PatientName, copy.PatientID, copy.StudyDescription) == ("S1", "S1", "Chest of")
    assert copy.ReferencedImageSequence[0].PatientName == "S1"
    assert copy.Rows == 32
    assert not [element for element in copy.iterall() if element.tag.is_private]


def test_kept_elements_are_identical_to_the_last_byte(clean):
    odd = builders.element("ConvolutionKernel", "SH", b"B30f\\  x") + builders.element(
        "KVP", "DS", b" 120.0 "
    )
    data = builders.raw_file(CT_CLASS, INSTANCE, *[odd])

    assert odd in clean(data).data()


def test_the_preamble_and_the_old_file_meta_are_not_sent(clean):
    data = builders.dicom_bytes()
    meta = builders.element(0x00020016, "AE", b"DOES_PC ") + builders.element(0x00020102, "OB", b"Doe^John")
    at = data.index(b"\x02\0\x02\0UI")
    length = struct.pack("<L", struct.unpack_from("<L", data, 140)[0] + len(meta))
    spoiled = b"Doe John".ljust(128, b".") + b"DICM" + data[132:140] + length + meta + data[at:]
    assert b"DOES_PC" in spoiled

    result = clean(spoiled)

    assert b"Doe" not in result.data()
    assert b"DOES_PC" not in result.data()
    copy = copy_of(result)
    assert copy.preamble == bytes(128)
    assert copy.file_meta.MediaStorageSOPInstanceUID == copy.SOPInstanceUID
    assert copy.file_meta.ImplementationVersionName == "XNATUPLOADER_2"
    assert copy.file_meta.FileMetaInformationGroupLength == len(copy_meta(result.data()))


def copy_meta(data):
    end = data.index(CT_CLASS[:8]) if CT_CLASS[:8] in data else len(data)
    first = data.index(b"\x08\0\x05\0CS")
    return data[144 : min(end, first)]


def test_a_file_without_preamble_is_cleaned_and_gets_one(clean):
    data = builders.dicom_bytes(meta=False, transfer_syntax="implicit")

    copy = copy_of(clean(data))

    assert copy.file_meta.TransferSyntaxUID == builders.SYNTAXES["implicit"]
    assert copy.PatientID == "S1"


def test_a_file_meta_that_names_the_wrong_encoding_is_seen_through(clean):
    data = builders.dicom_bytes(transfer_syntax="explicit")
    wrong = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    assert wrong != data

    assert b"Doe" not in clean(wrong).data()
    assert isinstance(clean(wrong), CleanCopy)


def test_an_element_that_changes_to_implicit_vr_is_cleaned(clean):
    switched = builders.element("PatientName", "PN", b"Doe^John", explicit=False)

    result = clean(builders.raw_file(CT_CLASS, INSTANCE, switched))

    assert copy_of(result).PatientName == "S1"
    assert b"Doe" not in result.data()


def test_a_uid_written_as_un_is_cleaned_and_named_in_the_file_meta(clean):
    instance = builders.element("SOPInstanceUID", "UN", b"1.2.3.45")

    copy = copy_of(clean(builders.raw_file(CT_CLASS, instance)))

    assert copy.file_meta.MediaStorageSOPInstanceUID == KEY.uid("1.2.3.45")
    assert copy.SOPInstanceUID == KEY.uid("1.2.3.45")


@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_written_as_un_are_cleaned_inside(clean, undefined):
    name = builders.element("PatientName", "PN", b"Doe^John", explicit=False)
    rows = builders.element("ReferencedFrameNumber", "IS", b"12", explicit=False)
    if undefined:
        value = ITEM_UNDEFINED + rows + name + ITEM_END + SEQUENCE_END
        sequence = builders.element("ReferencedImageSequence", "UN", value, length=0xFFFFFFFF)
    else:
        value = struct.pack("<HHL", 0xFFFE, 0xE000, len(rows + name)) + rows + name
        sequence = builders.element("ReferencedImageSequence", "UN", value)

    copy = copy_of(clean(builders.raw_file(CT_CLASS, INSTANCE, sequence)))

    [item] = copy.ReferencedImageSequence
    assert (item.PatientName, item.ReferencedFrameNumber) == ("S1", 12)


def test_a_sequence_written_as_un_is_little_endian_in_a_big_endian_file(clean):
    name = builders.element("PatientName", "PN", b"Doe^John", explicit=False)
    value = struct.pack("<HHL", 0xFFFE, 0xE000, len(name)) + name
    big = builders.dicom_bytes(transfer_syntax="big", pixels=None)
    sequence = struct.pack(">HH2sHL", 0x5200, 0x9229, b"UN", 0, len(value)) + value

    result = clean(big + sequence)

    assert b"Doe" not in result.data()
    assert result.data().endswith(struct.pack("<HHL", 0x0010, 0x0010, 2) + b"S1")


def test_a_sequence_that_must_be_a_dummy_keeps_nothing_of_its_items(clean):
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "4711", "99LOCAL", "Dr. Doe"
    code.PixelSpacing = ["1", "2"]

    [item] = copy_of(
        clean(builders.dicom_bytes(PersonIdentificationCodeSequence=[code]))
    ).PersonIdentificationCodeSequence

    assert (item.CodeValue, item.CodeMeaning, item.PixelSpacing) == ("ANONYMIZED", "ANONYMIZED", 0)


def test_sequences_of_undefined_length_are_cleaned_at_any_depth(clean):
    value = builders.element("PatientName", "PN", b"Doe^John")
    for _ in range(20):
        value = ITEM_UNDEFINED + value + ITEM_END + SEQUENCE_END
        value = builders.element("ReferencedImageSequence", "SQ", value, length=0xFFFFFFFF)

    result = clean(builders.raw_file(CT_CLASS, INSTANCE, value))

    assert b"Doe" not in result.data()
    item = copy_of(result)
    for _ in range(20):
        [item] = item.ReferencedImageSequence
    assert item.PatientName == "S1"


def test_what_stands_behind_the_pixel_data_is_cleaned_too(clean):
    before = builders.dicom_bytes(pixels=(4, 4))
    trailing = builders.element(0xFFFCFFFC, "OB", b"Doe^John") + builders.element(0x7FE10010, "LO", b"Doe ")

    result = clean(before + trailing)

    assert b"Doe" not in result.data()
    assert copy_of(result).pixel_array.shape == (4, 4)


def test_padding_with_zeros_at_the_end_is_left_out(clean):
    data = builders.dicom_bytes()

    assert clean(data + bytes(512)).data() == clean(data).data()


def test_elements_out_of_order_are_cleaned(clean):
    name = builders.element("PatientName", "PN", b"Doe^John")
    data = builders.raw_file(builders.element("Rows", "US", b"\1\0"), name, CT_CLASS, name, INSTANCE)

    result = clean(data)

    assert b"Doe" not in result.data()
    assert copy_of(result).PatientName == "S1"


# --- what it says ---


def test_the_copy_is_marked(clean):
    policy = Policy("shifted", True, True, True, ("AccessionNumber",))

    copy = copy_of(clean(builders.dicom_bytes(), Cleaner(policy, KEY)))

    assert copy.PatientIdentityRemoved == "YES"
    codes = [item.CodeValue for item in copy.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113105", "113107", "113108", "113109"]
    assert {item.CodingSchemeDesignator for item in copy.DeidentificationMethodCodeSequence} == {"DCM"}
    assert all(item.CodeMeaning for item in copy.DeidentificationMethodCodeSequence)
    assert copy.LongitudinalTemporalInformationModified == "MODIFIED"
    assert "Basic Profile" in copy.DeidentificationMethod[0]
    assert "Kept by choice of the site: AccessionNumber" in list(copy.DeidentificationMethod)
    assert all(len(value) <= 64 for value in copy.DeidentificationMethod)
    assert [element.tag for element in copy] == sorted(element.tag for element in copy)


@pytest.mark.parametrize(
    ("dates", "code", "word"),
    [("none", None, "REMOVED"), ("full", "113106", "UNMODIFIED"), ("shifted", "113107", "MODIFIED")],
)
def test_the_mark_tells_what_became_of_the_dates(clean, dates, code, word):
    copy = copy_of(clean(builders.dicom_bytes(), Cleaner(Policy(dates), KEY)))

    assert copy.LongitudinalTemporalInformationModified == word
    codes = [item.CodeValue for item in copy.DeidentificationMethodCodeSequence]
    assert codes == ["113100"] + ([code] if code else [])


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_marks_of_an_earlier_de_identification_stay(clean, syntax):
    earlier = pydicom.Dataset()
    earlier.CodeValue, earlier.CodingSchemeDesignator, earlier.CodeMeaning = (
        "113101",
        "DCM",
        "Clean Pixel Data Option",
    )
    data = builders.dicom_bytes(
        transfer_syntax=syntax,
        DeidentificationMethodCodeSequence=[earlier],
        PatientIdentityRemoved="NO",
        DeidentificationMethod="by Dr. Doe",
    )

    result = clean(data)

    copy = copy_of(result)
    assert [item.CodeValue for item in copy.DeidentificationMethodCodeSequence] == ["113101", "113100"]
    assert copy.PatientIdentityRemoved == "YES"
    assert b"Doe" not in result.data()
    again = clean(result.data())
    assert [item.CodeValue for item in copy_of(again).DeidentificationMethodCodeSequence] == [
        "113101",
        "113100",
    ]


def test_burned_in_annotation_is_left_as_it_is(clean):
    assert copy_of(clean(builders.dicom_bytes(BurnedInAnnotation="YES"))).BurnedInAnnotation == "YES"
    assert "BurnedInAnnotation" not in copy_of(clean(builders.dicom_bytes()))


def test_text_and_key_tell_what_the_copy_says(clean):
    """The sheet's rows are sent with what `Cleaner.text` and `Key.uid` make of them: the copy must say the same."""
    cleaner = Cleaner(Policy("shifted"), KEY)
    before = pydicom.dcmread(io.BytesIO(builders.dicom_bytes()))
    copy = copy_of(clean(builders.dicom_bytes(), cleaner))

    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert copy[keyword].value == KEY.uid(before[keyword].value)
    for keyword in ("StudyDate", "Modality"):
        assert copy[keyword].value == cleaner.text(keyword, before[keyword].value, "S1")
    assert "SeriesDescription" not in copy
    assert cleaner.text("SeriesDescription", before.SeriesDescription, "S1") == ""
    assert not copy_of(clean(builders.dicom_bytes())).StudyDate


def test_uids_agree_between_files_references_and_runs(clean):
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    reference.ReferencedSOPInstanceUID = builders.uid("instance study/series/1")
    second = copy_of(clean(builders.dicom_bytes(instance="2", ReferencedImageSequence=[reference])))

    first = copy_of(deidentify_again(clean))

    assert second.ReferencedImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.ReferencedImageSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert second.SeriesInstanceUID == first.SeriesInstanceUID
    assert second.SOPInstanceUID != first.SOPInstanceUID


def deidentify_again(clean):
    return clean(
        builders.dicom_bytes(instance="1"),
        Cleaner(Policy(), Key(bytes(range(32)))),
    )


def test_well_known_and_several_uids(clean):
    copy = copy_of(
        clean(
            builders.dicom_bytes(
                FrameOfReferenceUID="1.2.840.10008.1.4.1.1",
                IrradiationEventUID=["1.2.3", "1.2.4"],
                SynchronizationFrameOfReferenceUID="",
            )
        )
    )

    assert copy.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"
    assert list(copy.IrradiationEventUID) == [KEY.uid("1.2.3"), KEY.uid("1.2.4")]
    assert copy.SynchronizationFrameOfReferenceUID == ""


@pytest.mark.parametrize(
    ("subject", "expected"),
    [("S1", "S1"), ("M\u00fcller^A=b\\c", "M_ller_A_b_c"), (" 0001 ", "0001"), ("\u5c71\u7530", "__")],
)
def test_the_subject_is_plain_in_every_character_set(clean, subject, expected):
    for charset in ("ISO_IR 192", "ISO_IR 100", ["", "ISO 2022 IR 87"]):
        copy = copy_of(clean(builders.dicom_bytes(SpecificCharacterSet=charset), subject=subject))
        assert (copy.PatientName, copy.PatientID) == (expected, expected)


@pytest.mark.parametrize(
    ("charset", "name", "description", "expected"),
    [
        ("ISO_IR 100", "M\u00fcller^Hans", "Sch\u00e4del M\u00dcLLER axial", "Sch\u00e4del axial"),
        ("ISO_IR 192", "\u5c71\u7530^\u592a\u90ce", "\u982d\u90e8 \u5c71\u7530 CT", "\u982d\u90e8 CT"),
        ("ISO_IR 192", "\u0141ukasz^Jan", "glowa LUKASZ", "glowa"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou", "Head Yamada", "Head"),
    ],
)
def test_descriptions_are_cleaned_in_their_own_character_set(clean, charset, name, description, expected):
    data = builders.dicom_bytes(SpecificCharacterSet=charset, PatientName=name, StudyDescription=description)

    assert copy_of(clean(data, DESCRIPTORS)).StudyDescription == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("charset", [b"ISO_IR 192", b"\\ISO 2022 IR 87 "])
def test_a_description_that_cannot_be_decoded_is_emptied(clean, charset):
    text = builders.element("SpecificCharacterSet", "CS", charset)
    broken = builders.element("StudyDescription", "LO", b"Doe \x1b$B\xff\xfe\xff ")
    result = clean(builders.raw_file(text, CT_CLASS, INSTANCE, broken), DESCRIPTORS)

    assert b"Doe" not in result.data()
    assert copy_of(result).StudyDescription == ""


# --- refused ---


@pytest.mark.parametrize("modality", ["SR", "KO", "DOC"])
def test_reports_and_documents_need_a_person(clean, modality):
    refused = refusal(clean(builders.dicom_bytes(Modality=modality, pixels=None)))

    assert refused.status is Status.REVIEW
    assert "set Upload to N" in refused.message


@pytest.mark.parametrize(
    "element",
    [
        builders.element("EncapsulatedDocument", "OB", b"%PDF Doe"),
        builders.element("ContentSequence", "SQ", b""),
        builders.element(
            "ReferencedImageSequence",
            "SQ",
            ITEM_UNDEFINED + builders.element("ContentSequence", "SQ", b"") + ITEM_END + SEQUENCE_END,
            length=0xFFFFFFFF,
        ),
        builders.element("EncapsulatedDocument", "OB", bytes(100_000)),
    ],
)
def test_documents_and_report_content_in_any_object_need_a_person(clean, element):
    assert refusal(clean(builders.raw_file(CT_CLASS, INSTANCE, element))).status is Status.REVIEW


NESTED_SHORT = struct.pack("<HHL", 0xFFFE, 0xE000, 400) + builders.element("PatientName", "PN", b"Doe^John")


@pytest.mark.parametrize(
    "body",
    [
        (),
        (CT_CLASS,),
        (CT_CLASS, INSTANCE, b"\x10\0\x10\0PN"),
        (CT_CLASS, INSTANCE, builders.element("PatientName", "PN", b"Doe^John", length=200)),
        (CT_CLASS, INSTANCE, builders.element("ReferencedImageSequence", "SQ", NESTED_SHORT)),
        (CT_CLASS, INSTANCE, builders.element("ReferencedImageSequence", "SQ", b"Doe^John")),
        (
            CT_CLASS,
            INSTANCE,
            builders.element("ReferencedImageSequence", "SQ", ITEM_UNDEFINED, length=0xFFFFFFFF),
        ),
        (CT_CLASS, INSTANCE, builders.element("ReferencedImageSequence", "OB", b"Doe^John")),
        (CT_CLASS, INSTANCE, builders.element("StudyID", "SQ", b"")),
        (CT_CLASS, INSTANCE, builders.element("StudyID", "ZZ", b"Doe^John")),
        (CT_CLASS, INSTANCE, builders.element("PixelData", "OW", b"1234", length=1000)),
        (CT_CLASS, INSTANCE, builders.element("PixelData", "OB", b"Doe^John", length=0xFFFFFFFF)),
        (CT_CLASS, INSTANCE, builders.element("PixelData", "OB", ITEM_UNDEFINED, length=0xFFFFFFFF)),
        (CT_CLASS, INSTANCE, ITEM_END),
        (CT_CLASS, INSTANCE, b"Doe^John and more"),
        (CT_CLASS, INSTANCE, b"\0\0\0\0Doe^John"),
    ],
)
def test_what_cannot_be_walked_to_its_end_is_refused(clean, body):
    refused = refusal(clean(builders.raw_file(*body)))

    assert refused.status is Status.FAILED
    assert "cannot be de-identified" in refused.message
    assert "Doe" not in refused.message


@pytest.mark.parametrize("data", [b"", b"DICM", b"no DICOM at all, but long enough" * 10, bytes(1000)])
def test_what_is_no_dicom_is_refused(clean, data):
    assert refusal(clean(data)).status is Status.FAILED


def test_an_item_that_ends_twice_is_refused(clean):
    value = struct.pack("<HHL", 0xFFFE, 0xE000, 8) + ITEM_END
    sequence = builders.element("ReferencedImageSequence", "SQ", value)

    assert (
        "ends in the wrong place" in refusal(clean(builders.raw_file(CT_CLASS, INSTANCE, sequence))).message
    )


def test_a_vr_that_nobody_knows_is_refused(clean):
    unknown = builders.element("StudyID", "ZZ", b"Doe^John")

    assert (
        "(0020,0010) StudyID has an unknown VR"
        in refusal(clean(builders.raw_file(CT_CLASS, INSTANCE, unknown))).message
    )


def test_a_dicomdir_is_told_by_its_file_meta(clean):
    data = builders.raw_file(CT_CLASS, INSTANCE)
    directory = builders.element(0x00020002, "UI", b"1.2.840.10008.1.3.10")
    length = struct.pack("<L", struct.unpack_from("<L", data, 140)[0] + len(directory))

    refused = refusal(clean(data[:140] + length + directory + data[144:]))

    assert refused.status is Status.REVIEW
    assert "DICOMDIR" in refused.message


def test_endless_nesting_is_refused(clean):
    assert "nested" in refusal(clean(builders.nested_sequences(3000))).message


def test_missing_and_unreadable_files_are_refused(tmp_path):
    assert BASIC.clean(tmp_path / "gone.dcm", "S1").status is Status.MISSING
    assert BASIC.clean(tmp_path, "S1").status is Status.FAILED


def test_deflated_data_that_are_damaged_or_a_bomb_are_refused(tmp_path, clean, monkeypatch):
    monkeypatch.setattr(source, "LARGEST_INFLATED", 4 << 20)
    bomb = builders.write_deflate_bomb(tmp_path / "bomb.dcm", 8, before=(CT_CLASS, INSTANCE))
    assert "larger" in BASIC.clean(bomb, "S1").message

    data = builders.dicom_bytes(transfer_syntax="deflated")
    assert "deflated data set is cut off" in refusal(clean(data[:-40])).message
    assert refusal(clean(data[:-40] + b"\xff" * 40)).status is Status.FAILED


def test_a_file_cut_anywhere_is_refused_or_cleaned_wholly(clean):
    data = builders.dicom_bytes(
        pixels=(2, 2),
        private=3,
        ReferencedImageSequence=[builders.dataset(pixels=None)],
        StudyDescription="Doe",
    )

    for end in range(0, len(data), 3):
        result = clean(data[:end])
        assert isinstance(result, NoCopy) or b"Doe" not in result.data(), end


SPOILED = builders.dicom_bytes(
    pixels=(4, 4),
    private=4,
    ReferencedImageSequence=[builders.dataset(pixels=None)],
    StudyDescription="CT of Doe",
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spots=st.lists(st.tuples(st.integers(0, len(SPOILED) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_no_damage_makes_it_raise(clean, spots):
    data = bytearray(SPOILED)
    for at, value in spots:
        data[at] = value

    for cleaner in (BASIC, DESCRIPTORS):
        result = clean(bytes(data), cleaner)
        if isinstance(result, CleanCopy):
            assert len(result.data()) == result.size
            assert clean(result.data(), cleaner)  # what it wrote can be read


# --- large files ---


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(source, "HELD", 200)
    monkeypatch.setattr(source, "WINDOW", 512)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "jpeg", "deflated"])
def test_a_file_read_by_windows_gives_the_same_copy(clean, tmp_path, monkeypatch, syntax):
    inner = builders.dataset(pixels=None, private=8)
    data = builders.dicom_bytes(
        transfer_syntax=syntax,
        pixels=(40, 40),
        private=60,
        SharedFunctionalGroupsSequence=[inner] * 5,
        RedPaletteColorLookupTableData=bytes(3000),
        StudyDescription="Chest Doe",
    )
    held = clean(data, DESCRIPTORS)
    monkeypatch.setattr(source, "HELD", 200)
    monkeypatch.setattr(source, "WINDOW", 512)

    windowed = clean(data, DESCRIPTORS)

    assert held.held
    assert windowed.held is (syntax == "deflated")
    assert windowed.data() == held.data()
    windowed.write(tmp_path / "copy.dcm")
    assert (tmp_path / "copy.dcm").read_bytes() == held.data()


def test_a_long_value_is_kept_or_removed_without_being_read(clean, monkeypatch):
    monkeypatch.setattr(source, "HELD", 200)
    long = builders.element("RedPaletteColorLookupTableData", "OW", b"12" * 50_000)
    private = builders.element(0x00291010, "OB", b"Doe^John" * 20_000)
    result = clean(builders.raw_file(CT_CLASS, INSTANCE, long, private))

    assert long in result.data()
    assert b"Doe" not in result.data()


@pytest.mark.usefixtures("small_windows")
def test_sequences_of_undefined_length_wider_than_a_window(clean):
    name = builders.element("PatientName", "PN", b"Doe^John")
    value = (ITEM_UNDEFINED + name * 20 + ITEM_END) * 30 + SEQUENCE_END
    sequence = builders.element("ReferencedImageSequence", "SQ", value, length=0xFFFFFFFF)

    result = clean(builders.raw_file(CT_CLASS, INSTANCE, sequence))

    assert b"Doe" not in result.data()
    assert len(copy_of(result).ReferencedImageSequence) == 30


@pytest.mark.usefixtures("small_windows")
def test_a_sequence_beyond_the_limit_is_refused(clean, monkeypatch):
    monkeypatch.setattr(source, "LARGEST_WINDOW", 2000)
    value = (ITEM_UNDEFINED + CT_CLASS * 20 + ITEM_END) * 30
    sequence = builders.element("ReferencedImageSequence", "SQ", value + SEQUENCE_END, length=0xFFFFFFFF)

    assert (
        "larger than can be handled"
        in refusal(clean(builders.raw_file(CT_CLASS, INSTANCE, sequence))).message
    )


@pytest.mark.usefixtures("small_windows")
def test_a_large_file_that_changes_after_its_cleaning_breaks_the_copy_off(tmp_path):
    path = builders.write_dicom(tmp_path / "a.dcm", pixels=(40, 40))
    result = BASIC.clean(path, "S1")
    assert not result.held
    assert len(result.data()) == result.size

    os.utime(path, ns=(1, 1))
    with pytest.raises(OriginalChanged):
        result.data()


# --- other threads and processes ---


def test_other_processes_give_the_same_copy(tmp_path):
    paths = [builders.write_dicom(tmp_path / f"{number}.dcm", instance=str(number)) for number in range(4)]
    cleaner = Cleaner(Policy("shifted", clean_descriptors=True), KEY)
    here = [cleaner.clean(path, "S1").data() for path in paths]

    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        there = [result.data() for result in pool.map(cleaner.clean, paths, ["S1"] * 4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threads = [result.data() for result in pool.map(cleaner.clean, paths * 8, ["S1"] * 32)]

    assert there == here
    assert threads == here * 8


def test_results_survive_pickling(clean, monkeypatch):
    data = builders.dicom_bytes(pixels=(40, 40))
    held = clean(data)
    monkeypatch.setattr(source, "HELD", 200)
    windowed, refused = clean(data), BASIC.clean(clean.__closure__[0].cell_contents / "none", "S1")

    assert pickle.loads(pickle.dumps(held)).data() == held.data()
    assert pickle.loads(pickle.dumps(windowed)) == windowed
    assert pickle.loads(pickle.dumps(refused)) == refused


def test_a_deflated_copy_inflates_to_what_was_cleaned(clean):
    result = clean(builders.dicom_bytes(transfer_syntax="deflated"))
    at = result.data().index(b"XNATUPLOADER_2") + 14

    inflated = zlib.decompress(result.data()[at:], -zlib.MAX_WBITS)

    assert b"Doe" not in inflated
    assert b"S1" in inflated


# --- text for what is made from the workbook ---


def test_text_says_what_the_copy_would_say():
    cleaner = Cleaner(Policy("shifted", clean_descriptors=True), KEY)
    patient = {"PatientName": "Doe^John", "PatientID": "0001"}

    assert cleaner.text("StudyDate", "20200312", "S1") != "20200312"
    assert cleaner.text("StudyInstanceUID", "1.2.3", "S1") == KEY.uid("1.2.3")
    assert cleaner.text("StudyDescription", "CT head Doe", "S1", patient) == "CT head"
    assert cleaner.text("PatientName", "Doe^John", "S1") == "S1"
    assert cleaner.text("StationName", "CT01", "S1") == "ANONYMIZED"
    assert cleaner.text("Modality", "CT", "S1") == "CT"
    assert cleaner.text("PatientAddress", "Main St", "S1") == ""
    assert cleaner.text("0019,1001", "x", "S1") == ""
    assert BASIC.text("StudyDate", "20200312", "S1") == ""
    assert BASIC.text("StudyDescription", "CT head", "S1") == ""
