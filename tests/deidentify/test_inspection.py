"""Elements before and after, and the search for what is left of the patient."""

import io

import pydicom
import pytest

from tests.helpers import builders
from xnatuploader.deidentify import source
from xnatuploader.deidentify.cleaner import Cleaner
from xnatuploader.deidentify.inspection import ElementChange, inspect, inspect_copy, patient_tokens, residues
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy

KEY = Key(bytes(range(32)))
TOKENS = patient_tokens("M\u00fcller^Ann-Marie^^Dr.", "0042317", "19700412")


@pytest.fixture
def changes(tmp_path):
    path = tmp_path / "a.dcm"
    reference = pydicom.Dataset()
    reference.ReferencedSOPInstanceUID = "1.2.3"
    data = builders.dicom_bytes(
        private=3,
        ReferencedImageSequence=[reference] * 5,
        ReferringPhysicianName="Smith^J",
        PatientComments="x" * 500,
    )
    path.write_bytes(b"made by Doe".ljust(128, b"\0") + data[128:])
    result = Cleaner(Policy(), KEY).clean(path, "S1")
    return {change.tag: change for change in inspect_copy(path, result)}


def test_every_element_stands_there_before_and_after(changes):
    assert changes["0010,0010"] == ElementChange("0010,0010", "PatientName", "Doe^John", "S1")
    assert changes["0008,0090"].after == ""
    assert changes["0008,0060"] == ElementChange("0008,0060", "Modality", "CT", "CT")
    assert changes["0012,0062"] == ElementChange("0012,0062", "PatientIdentityRemoved", "", "YES")
    assert changes["0008,0008"].after == "ORIGINAL\\PRIMARY\\AXIAL"
    assert changes["0000,0000"].before.endswith("made by Doe") or "made by Doe" in changes["0000,0000"].before
    assert changes["0000,0000"].after == ""
    assert changes["0002,0003"].before == changes["0008,0018"].before
    assert changes["0002,0003"].after == changes["0008,0018"].after != changes["0008,0018"].before
    assert changes["0029,0010"].keyword == "private"
    assert changes["0029,0010"].after == ""


def test_nested_elements_are_named_by_their_item_and_only_the_first_ones_shown(changes):
    assert changes["0008,1140"].before == "5 items"
    first = changes["0008,1140[1] 0008,1155"]
    assert (first.keyword, first.before, first.after) == (
        "ReferencedSOPInstanceUID",
        "1.2.3",
        KEY.uid("1.2.3"),
    )
    assert "0008,1140[4] 0008,1155" not in changes


def test_long_values_are_cut_and_pixels_are_not_shown(changes):
    assert len(changes["0010,4000"].before) == 200
    assert not [tag for tag in changes if tag.startswith("7FE0")]
    assert list(changes) == sorted(changes)


def test_a_value_that_pydicom_cannot_read_is_said_to_be_so(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(builders.dicom_bytes(pixels=None) + builders.element("Rows", "US", b"abc"))
    result = Cleaner(Policy(), KEY).clean(path, "S1")

    changes = {change.keyword: change for change in inspect_copy(path, result)}

    assert changes["Rows"].before == changes["Rows"].after == "a value that cannot be read"
    assert changes["PatientName"].after == "S1"


def test_inspect_takes_two_data_sets():
    before, after = builders.dataset(pixels=None), builders.dataset(pixels=None, PatientID=None, StudyID="")

    found = {change.keyword: (change.before, change.after) for change in inspect(before, after)}

    assert found["PatientID"] == ("0001", "")
    assert found["StudyID"] == ("1", "")


def test_a_large_copy_is_shown_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "HELD", 200)
    monkeypatch.setattr(source, "WINDOW", 2048)
    path = builders.write_dicom(tmp_path / "a.dcm", pixels=(64, 64))
    result = Cleaner(Policy(), KEY).clean(path, "S1")
    assert not result.held

    assert "0028,0010" in {change.tag for change in inspect_copy(path, result)}


@pytest.mark.parametrize(
    "text",
    [
        "Head MUELLER",
        "muller_ann.dcm",
        "M\u00dcLLER",
        "Mu\u0308ller",
        "x-Mueller2020",
        "HeadMarie",
        "ann",
        "AnnCT",
        "42317",
        "ID_0042317_x",
        "born 12.04.1970",
        "1970-04-12",
        "19700412",
        "12/4/1970",
        "4-12-1970",
        "12-Apr-1970",
        "scan_120470",
    ],
)
def test_what_is_left_of_the_patient_is_found(text):
    found = residues([("label", text)], TOKENS)

    assert found.keys() == {"label"}
    assert found["label"] in TOKENS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CT Abdomen",
        "annual report",
        "planned",
        "0042",
        "423170",
        "1970",
        "11970041200",
        "12 mm",
        "Mull",
        "Dr",
    ],
)
def test_what_says_nothing_of_the_patient_is_not_found(text):
    assert residues([("label", text)], TOKENS) == {}


def test_tokens_have_three_characters_and_more():
    tokens = patient_tokens("Li^Wu^X", "7", "not a date")

    assert tokens == frozenset()


def test_residues_of_a_copy_are_found_in_what_was_kept(tmp_path):
    path = builders.write_dicom(tmp_path / "a.dcm", ProtocolName="Doe knee", SequenceName="doe_tse")
    result = Cleaner(Policy(), KEY).clean(path, "S1")
    changes = inspect_copy(path, result)
    tokens = patient_tokens("Doe^John", "0001", "19700101")

    found = residues([(change.name, change.after) for change in changes], tokens)

    assert found == {"SequenceName (0018,0024)": "doe"}
    assert pydicom.dcmread(io.BytesIO(result.data())).SequenceName == "doe_tse"
