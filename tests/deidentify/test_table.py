"""Every row of PS3.15 table E.1-1, planted at the top and nested, explicit and implicit, by every option."""

import datetime
import io
import itertools
import struct

import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom import datadict

from tests.helpers import builders
from xnatuploader.deidentify import attributes, options, profile
from xnatuploader.deidentify.cleaner import Cleaner
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy
from xnatuploader.deidentify.source import CleanCopy

KEY = Key(bytes(range(32)))
HOLDER = 0x52009229  # SharedFunctionalGroupsSequence: not in the table, so it stays and is cleaned inside
CT_CLASS = b"1.2.840.10008.5.1.4.1.1.2\0"
REFUSED = {0x0040A730, 0x00420011}  # their presence refuses the whole file: tests of their own

CODES = {
    "D": table.D_TAGS,
    "Z": table.Z_TAGS,
    "X": table.X_TAGS,
    "U": table.U_TAGS,
    "Z/D": table.Z_D_TAGS,
    "X/Z": table.X_Z_TAGS,
    "X/D": table.X_D_TAGS,
    "X/Z/D": table.X_Z_D_TAGS,
    "X/Z/U*": table.X_Z_U_STAR_TAGS,
}
ROWS = {tag[0] << 16 | tag[1]: code for code, tags in CODES.items() for tag in tags if len(tag) == 2}
ELSEWHERE = {tag for tag in ROWS if tag >> 16 < 8}  # file meta, DICOMDIR and messages: not in a data set
WALKED = {tag: code for tag, code in ROWS.items() if tag not in REFUSED | ELSEWHERE}

POLICIES = {
    "basic": Policy(),
    "dates full": Policy(retain_dates="full"),
    "dates shifted": Policy(retain_dates="shifted"),
    "patient": Policy(retain_patient_characteristics=True),
    "device": Policy(retain_device_identity=True),
    "descriptors": Policy(clean_descriptors=True),
    "all": Policy("shifted", True, True, True),
}

TEXTS = {
    "PN": "Doe^John",
    "CS": "LIVER DOE",
    "AE": "LIVER DOE",
    "SH": "Liver Doe",
    "DA": "20200312",
    "DT": "20200312101112.5+0100",
    "TM": "101112",
    "AS": "044Y",
    "DS": "4711",
    "IS": "4711",
    "UR": "http://doe.example",
}


def vr_of(tag: int) -> str:
    return str(datadict.dictionary_VR(tag))[:2] if datadict.dictionary_has_tag(tag) else "LO"


def planted_bytes(tag: int, explicit: bool) -> bytes:
    vr = vr_of(tag)
    if vr == "SQ":
        inner = builders.element("PatientAddress", "LO", b"Doe was here", explicit=explicit)
        inner = builders.element(0x00080100, "SH", b"C123", explicit=explicit) + inner
        return struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
    if vr == "UI":
        text = f"1.2.3.{tag}"
        return text.encode() + b"\0" * (len(text) % 2)
    if vr in ("FD", "FL", "SL", "SS", "UL", "US", "OB", "OW", "OF", "UN", "AT"):
        return b"DOE DOE "
    mark = "".join(chr(ord("p") + int(digit, 16) % 10) for digit in f"{tag:08x}")  # no two the same
    text = TEXTS.get(vr, "Liver of John Doe.") + (
        f" {mark}" if vr in ("SH", "LO", "LT", "ST", "UT", "AE") else ""
    )
    return text.encode() + b" " * (len(text) % 2)


def stripped(tag: int) -> bytes:
    return planted_bytes(tag, True).strip(b" \0")


def planted(tag: int, explicit: bool) -> bytes:
    return builders.element(tag, vr_of(tag), planted_bytes(tag, explicit), explicit=explicit)


def file_of_all(explicit: bool) -> bytes:
    """A file that holds every row of the table, and once more inside a sequence."""
    rows = {tag: planted(tag, explicit) for tag in sorted(WALKED)}
    rows.setdefault(0x00080016, builders.element("SOPClassUID", "UI", CT_CLASS, explicit=explicit))
    inner = b"".join(planted(tag, explicit) for tag in sorted(WALKED))
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
    rows[HOLDER] = builders.element(HOLDER, "SQ", item, explicit=explicit)
    body = [rows[tag] for tag in sorted(rows)]
    return builders.raw_file(*body, transfer_syntax="explicit" if explicit else "implicit")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """Cleaned copies of the file of all rows, by policy and encoding: bytes, and values read by pydicom."""
    folder = tmp_path_factory.mktemp("table")
    made = {}
    for explicit, (name, policy) in itertools.product((True, False), POLICIES.items()):
        path = folder / f"{explicit}.dcm"
        path.write_bytes(file_of_all(explicit))
        result = Cleaner(policy, KEY).clean(path, "S1")
        assert isinstance(result, CleanCopy), result
        data = result.data()
        with pydicom.config.disable_value_validation():
            read = pydicom.dcmread(io.BytesIO(data))
            [nested] = read[HOLDER].value
            made[name, explicit] = (data, {"nested": raw_values(nested), "top": raw_values(read)})
    return made


def raw_values(read):
    """Tag -> the value as bytes without padding (a sequence: its items' text), for all elements."""
    found = {}
    for tag in sorted(read.keys()):
        element = read.get_item(tag)
        if element.VR == "SQ" or (datadict.dictionary_has_tag(tag) and datadict.dictionary_VR(tag) == "SQ"):
            found[int(tag)] = str(read[tag].value).encode() if len(read[tag].value) else b""
        else:
            value = element.value if isinstance(element.value, bytes) else str(element.value or "").encode()
            found[int(tag)] = value.strip(b" \0") or value
    return found


def name(tag: int) -> str:
    return datadict.keyword_for_tag(tag) or f"{tag:08x}"


def obeys(code: str, tag: int, value: bytes | None) -> bool:
    """Whether `value` (None: absent) is one that the table's `code` allows where `planted_bytes` stood."""
    absent, empty = value is None, value == b""
    dummy = (
        not absent
        and not empty
        and not set(b"Doe was here".split()) & set(value.split())
        and (value.strip(b" \0") != planted_bytes(tag, True).strip(b" \0"))
    )
    if tag in (profile.PATIENT_NAME, profile.PATIENT_ID):
        return value == b"S1"
    remapped = not absent and value.strip(b"\0").decode("ascii", "replace") == KEY.uid(f"1.2.3.{tag}")
    if code == "X/Z/U*":
        return absent or b"Doe was here" not in value
    return {
        "D": dummy,
        "Z": empty or dummy,
        "X": absent,
        "U": remapped,
        "Z/D": empty or dummy,
        "X/Z": absent or empty,
        "X/D": absent or dummy,
        "X/Z/D": absent or empty or dummy,
    }[code]


def test_the_table_is_the_whole_table():
    assert len(ROWS) > 640
    assert sum(map(len, CODES.values())) == len(ROWS) + 3  # 50xx, 60xx3000, 60xx4000


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("place", ["top", "nested"])
def test_every_row_is_treated_as_the_basic_profile_says(cleaned, place, explicit):
    values = cleaned["basic", explicit][1][place]

    wrong = {
        name(tag): values.get(tag) for tag, code in WALKED.items() if not obeys(code, tag, values.get(tag))
    }

    assert wrong == {}


@pytest.mark.parametrize("explicit", [True, False])
def test_no_planted_name_and_no_planted_uid_is_left_anywhere_in_the_bytes(cleaned, explicit):
    data = cleaned["basic", explicit][0]

    assert b"DOE" not in data.upper()
    assert b"1.2.3." not in data
    assert b"20200312" not in data
    assert b"DOE" in file_of_all(explicit).upper()


def rows_by_vr(*vrs: str) -> set[int]:
    return {tag for tag in WALKED if datadict.dictionary_has_tag(tag) and vr_of(tag) in vrs}


DATES = {tag for tag in rows_by_vr("DA", "DT", "TM") if name(tag) not in options.DATES_NOT_RETAINED}


@pytest.mark.parametrize("place", ["top", "nested"])
@pytest.mark.parametrize("explicit", [True, False])
def test_full_dates_stay_and_nothing_else_changes(cleaned, place, explicit):
    values, basic = cleaned["dates full", explicit][1][place], cleaned["basic", explicit][1][place]
    stamps = {builders.tag_of(keyword) for keyword in options.TIMESTAMPS}

    assert len(DATES) > 150
    assert [name(tag) for tag in DATES | stamps if values.get(tag) != stripped(tag)] == []
    rest = {tag for tag in WALKED if tag not in DATES | stamps}
    assert {tag: values.get(tag) for tag in rest} == {tag: basic.get(tag) for tag in rest}


@pytest.mark.parametrize("place", ["top", "nested"])
@pytest.mark.parametrize("explicit", [True, False])
def test_shifted_dates_are_shifted_and_times_stay(cleaned, place, explicit):
    values = cleaned["dates shifted", explicit][1][place]
    moved = (datetime.date(2020, 3, 12) + datetime.timedelta(days=KEY.days("S1"))).strftime("%Y%m%d").encode()
    expected = {"DA": moved, "DT": moved + b"101112.5+0100", "TM": b"101112"}
    wrong = {
        name(tag): values.get(tag)
        for tag in DATES
        if (values.get(tag) or b"").strip() != expected[vr_of(tag)]
    }

    assert wrong == {}
    assert values[builders.tag_of("TimezoneOffsetFromUTC")] == stripped(
        builders.tag_of("TimezoneOffsetFromUTC")
    )
    assert values[builders.tag_of("PatientBirthDate")] == b""
    assert builders.tag_of("CertifiedTimestamp") not in values


@pytest.mark.parametrize("place", ["top", "nested"])
@pytest.mark.parametrize(
    ("policy", "kept", "scrubbed"),
    [
        ("patient", options.PATIENT_KEPT, options.PATIENT_CLEANED),
        ("device", options.DEVICE_KEPT, options.DEVICE_CLEANED),
        ("descriptors", frozenset(), options.DESCRIPTORS_CLEANED),
    ],
)
@pytest.mark.parametrize("explicit", [True, False])
def test_an_option_keeps_and_cleans_its_rows_and_no_others(cleaned, policy, kept, scrubbed, place, explicit):
    values, basic = cleaned[policy, explicit][1][place], cleaned["basic", explicit][1][place]
    kept_tags = {builders.tag_of(keyword) for keyword in kept}
    scrubbed_tags = {builders.tag_of(keyword) for keyword in scrubbed}

    for tag in kept_tags:
        if vr_of(tag) != "SQ":
            assert values[tag] == stripped(tag), name(tag)
    for tag in kept_tags | scrubbed_tags:
        if vr_of(tag) == "SQ":
            assert b"(0008,0100)" in values[tag], name(tag)
            assert b"Doe was here" not in values[tag], name(tag)
    for tag in scrubbed_tags:
        if vr_of(tag) in ("LO", "SH", "LT", "ST", "UT", "AE"):
            assert b"DOE" not in values[tag].upper(), name(tag)
            assert b"LIVER" in values[tag].upper(), name(tag)
    others = {tag for tag in WALKED if tag not in kept_tags | scrubbed_tags}
    assert {tag: values.get(tag) for tag in others} == {tag: basic.get(tag) for tag in others}


@pytest.mark.parametrize(
    ("keyword", "basic", "everything_retained"),
    [
        # read off the table by hand, so that a mistake in reading the library's lists shows
        ("AccessionNumber", "empty", "empty"),
        ("InstitutionName", "dummy", "dummy"),
        ("PatientAddress", "absent", "absent"),
        ("PatientAge", "absent", "kept"),
        ("PatientBirthDate", "empty", "empty"),
        ("PatientSex", "empty", "kept"),
        ("PatientWeight", "absent", "kept"),
        ("DeviceSerialNumber", "dummy", "kept"),
        ("StationName", "dummy", "kept"),
        ("StudyDate", "empty", "kept"),
        ("StudyTime", "empty", "kept"),
        ("StudyID", "empty", "empty"),
        ("ReferringPhysicianName", "empty", "empty"),
        ("OperatorsName", "dummy", "dummy"),
        ("EthnicGroup", "absent", "kept"),
        ("OtherPatientIDs", "absent", "absent"),
        ("RequestedProcedureID", "absent", "absent"),
    ],
)
def test_well_known_rows(tmp_path, keyword, basic, everything_retained):
    vr = vr_of(builders.tag_of(keyword))
    value = TEXTS.get(vr, "Liver")
    path = builders.write_dicom(tmp_path / "a.dcm", **{keyword: value})

    for policy, expected in (
        (Policy(), basic),
        (Policy("full", True, True, True), everything_retained),
    ):
        copy = read(Cleaner(policy, KEY).clean(path, "S1"))
        found = "absent" if keyword not in copy else "empty" if not copy[keyword].value else "dummy"
        if found == "dummy" and str(copy[keyword].value) == value:
            found = "kept"
        assert found == expected


def read(result):
    assert isinstance(result, CleanCopy), result
    return pydicom.dcmread(io.BytesIO(result.data()))


@pytest.mark.parametrize("group", [0x5000, 0x5006, 0x60FE])
def test_curves_and_overlays_of_every_group_are_removed(tmp_path, group):
    base = builders.dataset()
    base.add_new((group, 0x0010), "US", 8)
    base.add_new((group, 0x3000), "OW", b"Doe John")
    base.add_new((group, 0x4000), "LT", "Doe John")
    path = save(base, tmp_path)

    data = Cleaner(Policy("full", True, True, True), KEY).clean(path, "S1").data()

    assert b"Doe" not in data
    assert not [element for element in pydicom.dcmread(io.BytesIO(data)) if element.tag.group == group]


def save(base, folder):
    path = folder / "a.dcm"
    base.file_meta = pydicom.dataset.FileMetaDataset()
    base.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    if "PixelData" in base:
        base["PixelData"].VR = "OW"
    base.save_as(path, enforce_file_format=True)
    return path


def test_private_attributes_are_removed_at_every_level(tmp_path):
    inner = builders.dataset(private=5, pixels=None)
    path = builders.write_dicom(tmp_path / "a.dcm", private=20, SharedFunctionalGroupsSequence=[inner])

    copy = read(Cleaner(Policy(), KEY).clean(path, "S1"))

    assert [element.tag for element in copy.iterall() if element.tag.is_private] == []
    assert len(copy.SharedFunctionalGroupsSequence) == 1


def test_attributes_unknown_to_table_and_dictionary_are_removed(tmp_path):
    data = builders.raw_file(
        builders.element("SOPClassUID", "UI", CT_CLASS),
        builders.element("SOPInstanceUID", "UI", b"1.2.3.45"),
        builders.element(0x00080FF0, "LO", b"Doe^John"),
        builders.element(0x00200000, "UL", bytes(4)),
        builders.element(0x00209FF0, "SQ", b""),
    )
    (tmp_path / "a.dcm").write_bytes(data)

    copy = read(Cleaner(Policy(), KEY).clean(tmp_path / "a.dcm", "S1"))

    assert 0x00080FF0 not in copy
    assert 0x00200000 not in copy
    assert 0x00209FF0 not in copy


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("EvaluatorName", "Doe^John", ""),  # a name the table forgot
        ("RetrieveURL", "http://pacs/doe", None),
        ("ReferencedFiducialUID", "1.2.3", KEY.uid("1.2.3")),
        ("StudyUpdateDateTime", "20200312", None),
        ("SegmentDescription", "liver of Mr Doe", "liver of"),
        ("CodingSchemeName", "Doe's terminology", "Doe's terminology"),
        ("RelatedGeneralSOPClassUID", "1.2.3", "1.2.3"),
        ("PatientBirthDateInAlternativeCalendar", "1348-10-11", None),
        ("BurnedInAnnotation", "YES", "YES"),
    ],
)
def test_what_the_table_leaves_open_is_treated_like_its_kin(tmp_path, keyword, value, expected):
    path = builders.write_dicom(tmp_path / "a.dcm", **{keyword: value})

    copy = read(Cleaner(Policy(), KEY).clean(path, "S1"))

    assert (copy[keyword].value if keyword in copy else None) == expected


@pytest.mark.parametrize("field", ["AccessionNumber", "0008,0050", "(0008,0050)"])
def test_allow_fields_keeps_single_elements(tmp_path, field):
    path = builders.write_dicom(tmp_path / "a.dcm", AccessionNumber="A77")

    copy = read(Cleaner(Policy(allow_fields=(field,)), KEY).clean(path, "S1"))

    assert copy.AccessionNumber == "A77"
    assert copy.StudyID == ""


def test_allow_fields_keeps_a_private_element_with_its_creator_only(tmp_path):
    path = builders.write_dicom(tmp_path / "a.dcm", private=20)

    copy = read(Cleaner(Policy(allow_fields=("0019,1000",)), KEY).clean(path, "S1"))

    assert [str(element.tag) for element in copy if element.tag.is_private] == ["(0019,0010)", "(0019,1000)"]


def test_an_allowed_sequence_is_still_cleaned_inside(tmp_path):
    inner = pydicom.Dataset()
    inner.PatientName = "Doe^John"
    inner.PatientID = "0001"
    inner.TypeOfPatientID = "TEXT"
    path = builders.write_dicom(tmp_path / "a.dcm", OtherPatientIDsSequence=[inner])

    copy = read(Cleaner(Policy(allow_fields=("OtherPatientIDsSequence",)), KEY).clean(path, "S1"))

    [item] = copy.OtherPatientIDsSequence
    assert (item.PatientName, item.PatientID, item.TypeOfPatientID) == ("S1", "S1", "TEXT")


@pytest.mark.parametrize("field", ["PatientName", "PixelData", "0002,0016", "0012,0062"])
def test_allow_fields_that_cannot_be_kept_are_problems(field):
    policy = Policy(allow_fields=(field, "AccessionNumber"))

    [problem] = policy.problems()

    assert f"'{field}'" in problem
    with pytest.raises(ValueError, match="AllowFields"):
        Cleaner(policy, KEY)


@pytest.mark.parametrize("field", ["PatientNam", "0008"])
def test_no_copy_is_made_with_a_field_that_is_none(field):
    """The Configuration sheet has named it, with its cell, before it comes here."""
    with pytest.raises(ValueError, match=field):
        Cleaner(Policy(allow_fields=(field, "AccessionNumber")), KEY)


def test_removed_fields_follow_the_policy():
    def removed(policy):
        return profile.removed(filter(None, (entry[4] for entry in attributes.DICTIONARY.values())), policy)

    basic = removed(Policy())
    retained = removed(Policy("full", True, True, True))

    assert {
        "PatientName",
        "PatientID",
        "StudyDate",
        "SeriesDescription",
        "StudyInstanceUID",
        "PatientSex",
    } <= basic
    assert not {"Modality", "SeriesNumber", "Manufacturer", "BodyPartExamined"} & basic
    assert {"PatientName", "AccessionNumber", "StudyInstanceUID"} <= retained
    assert not {"StudyDate", "SeriesDescription", "PatientSex", "StationName"} & retained
    assert "SeriesDescription" not in removed(Policy(clean_descriptors=True))
    assert "StudyDate" in removed(Policy("shifted"))


def test_removed_fields_are_known_by_their_tags_and_private_ones_are_removed():
    fields = ("0010,0020", "0008,0060", "0019,1001", "0019,1002")

    assert profile.removed(fields, Policy(allow_fields=("0019,1002",))) == {"0010,0020", "0019,1001"}
