"""Types, resources and leading modality: XNAT's own choices, as its session builder makes them."""

from __future__ import annotations

import pydicom.uid
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnatuploader.dicom import xnattypes

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ENHANCED_MR_COLOR = "1.2.840.10008.5.1.4.1.1.4.3"
PET = "1.2.840.10008.5.1.4.1.1.128"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RAW = "1.2.840.10008.5.1.4.1.1.66"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
RTDOSE = "1.2.840.10008.5.1.4.1.1.481.2"
RTPLAN = "1.2.840.10008.5.1.4.1.1.481.5"
BASIC_SR = "1.2.840.10008.5.1.4.1.1.88.11"
DOSE_SR = "1.2.840.10008.5.1.4.1.1.88.67"
KO = "1.2.840.10008.5.1.4.1.1.88.59"
RF = "1.2.840.10008.5.1.4.1.1.12.2"
CSA = "1.3.12.2.1107.5.9.1"
TOMO = "1.2.840.10008.5.1.4.1.1.13.1.3"


STEADY = settings(derandomize=True, deadline=None)


@pytest.mark.parametrize(
    ("sop_classes", "modality", "expected"),
    [
        ([CT], "CT", "xnat:ctScanData"),
        ([PET], "PT", "xnat:petScanData"),
        ([MR], "", "xnat:mrScanData"),
        ([ENHANCED_MR, RAW], "MR", "xnat:mrScanData"),
        ([RTSTRUCT], "RTSTRUCT", "xnat:rtImageScanData"),
        ([SEG], "SEG", "xnat:segScanData"),
        ([SC], "CT", "xnat:scScanData"),
        ([SC, CT], "CT", "xnat:ctScanData"),
        ([US_MULTIFRAME], "IVUS", "xnat:usScanData"),
        ([RF], "RF", "xnat:rfScanData"),
        ([KO], "KO", "xnat:otherDicomScanData"),
        ([CSA], "MR", "xnat:otherDicomScanData"),
        ([RAW], "MR", "xnat:otherDicomScanData"),
        ([TOMO], "MG", "xnat:mgScanData"),
        ([], "PT", "xnat:petScanData"),
        ([""], " ct ", "xnat:ctScanData"),
        ([], "RTDOSE", "xnat:rtImageScanData"),
        (["1.2.3"], "XYZ", "xnat:otherDicomScanData"),
        ([], "", "xnat:otherDicomScanData"),
    ],
)
def test_a_scan_is_typed_by_sop_class_then_modality(sop_classes, modality, expected):
    assert xnattypes.scan_type(sop_classes, modality) == expected


@pytest.mark.parametrize(
    ("pairs", "session", "word"),
    [
        ([(CT, "CT")], "ct", "CT"),
        ([(PET, "PT")], "pet", "PT"),
        ([(PET, "PT"), (CT, "CT")], "pet", "PT"),
        ([(PET, "PT"), (MR, "MR")], "petmr", "PETMR"),
        ([(CT, "CT"), (SEG, "SEG")], "ct", "CT"),
        ([(CT, "CT"), (RTSTRUCT, "RTSTRUCT"), (RTDOSE, "RTDOSE")], "ct", "CT"),
        ([(CT, "CT"), (SC, "OT")], "ct", "CT"),
        ([(MR, "MR"), (RTSTRUCT, "RTSTRUCT")], "mr", "MR"),
        ([(SC, "CT")], "ct", "CT"),
        ([(SC, "OT")], "otherDicom", "OT"),
        ([(RTSTRUCT, "RTSTRUCT")], "otherDicom", "RTSTRUCT"),
        ([(RTPLAN, "RTPLAN"), (RTDOSE, "RTDOSE")], "otherDicom", "RTDOSE"),
        ([(SEG, "SEG")], "otherDicom", "SEG"),
        ([(RTSTRUCT, "RT")], "rt", "RT"),
        ([(BASIC_SR, "SR")], "sr", "SR"),
        ([(DOSE_SR, "SR"), (RF, "RF")], "rf", "RF"),
        ([(BASIC_SR, "SR"), (CT, "CT")], "ct", "CT"),
        ([(US_MULTIFRAME, "IVUS")], "us", "IVUS"),
        ([(US_MULTIFRAME, "IVUS"), (US_MULTIFRAME, "US")], "us", "US"),
        ([(MR, "")], "mr", "MR"),
        ([(CT, "OT")], "ct", "CT"),
        ([(KO, "KO")], "otherDicom", "KO"),
        ([(KO, "KO"), (SC, "OT")], "otherDicom", "KO"),
        ([("", "CT"), ("", "PT")], "pet", "PT"),
        ([("", "PT"), ("", "MR")], "petmr", "PETMR"),
        ([("", "CT"), ("", "SEG"), ("", "OT")], "ct", "CT"),
        ([("", "")], "otherDicom", "OT"),
        ([], "otherDicom", "OT"),
    ],
)
def test_a_session_is_typed_and_named_by_its_leading_object(pairs, session, word):
    assert xnattypes.session_type(pairs) == f"xnat:{session}SessionData"
    assert xnattypes.leading_modality(pairs) == word


STORAGE = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize(
    ("end", "modality", "scan", "session", "resource"),
    [
        # classes that no file of dicom-xnat-sop names: other DICOM and secondary (SOPModel)
        ("12.1.1", "XA", "otherDicom", "xa", "secondary"),  # Enhanced XA
        ("12.2.1", "RF", "otherDicom", "rf", "secondary"),  # Enhanced XRF
        ("128.1", "PT", "otherDicom", "pet", "secondary"),  # Legacy Converted Enhanced PET
        ("3", "US", "otherDicom", "us", "secondary"),  # the retired ultrasound classes
        ("6", "US", "otherDicom", "us", "secondary"),
        ("7.1", "OT", "otherDicom", "otherDicom", "secondary"),  # multi-frame secondary captures
        ("7.2", "OT", "otherDicom", "otherDicom", "secondary"),
        ("7.3", "OT", "otherDicom", "otherDicom", "secondary"),
        ("7.4", "OT", "otherDicom", "otherDicom", "secondary"),
        ("77.1.1", "ES", "otherDicom", "es", "secondary"),  # VL Endoscopic
        ("77.1.4", "XC", "otherDicom", "xc", "secondary"),  # VL Photographic
        ("9.1.2", "ECG", "otherDicom", "ecg", "secondary"),  # General ECG
        # series-scans.properties has them, study-sessions.properties or primary-sops.txt does not
        ("12.2", "RF", "rf", "rf", "DICOM"),
        ("12.2", "XA", "rf", "xa", "DICOM"),
        ("88.69", "SR", "sr", "sr", "secondary"),
        ("88.70", "SR", "sr", "sr", "secondary"),
        ("9.7.1", "EEG", "eeg", "eeg", "secondary"),
        # all three have them
        ("9.1.1", "ECG", "ecg", "ecg", "DICOM"),
        ("9.1.3", "ECG", "ecg", "ecg", "DICOM"),
        ("13.1.3", "MG", "mg", "mg", "DICOM"),  # since 1.10
        # a type without a rank, or a new one
        ("13.1.2", "DX", "otherDicom", "dx", "DICOM"),
        ("6.3", "PA", "otherDicom", "otherDicom", "DICOM"),
    ],
)
def test_classes_on_which_opinions_differed(end, modality, scan, session, resource):
    sop = STORAGE + end
    assert xnattypes.scan_type([sop], modality) == f"xnat:{scan}ScanData"
    assert xnattypes.session_type([(sop, modality)]) == f"xnat:{session}SessionData"
    assert xnattypes.resource(sop) == resource


@pytest.mark.parametrize("row", xnattypes.SOP_CLASSES.values(), ids=lambda row: row.name)
def test_every_row_has_the_name_that_dicom_gives_the_class(row):
    assert pydicom.uid.UID(row.uid).keyword == row.name


def test_a_class_that_xnat_does_not_know_is_not_typed_by_its_modality():
    assert xnattypes.scan_type(["1.2.3"], "MR") == "xnat:otherDicomScanData"


@STEADY
@given(st.lists(st.tuples(st.sampled_from([CT, MR, PET, SC, SEG, KO, RTSTRUCT, ""]), st.text(max_size=6))))
def test_the_order_of_files_changes_nothing_and_a_study_always_has_a_word(pairs):
    assert xnattypes.leading_modality(pairs)
    assert xnattypes.leading_modality(pairs) == xnattypes.leading_modality(list(reversed(pairs)))
    assert xnattypes.session_type(pairs) == xnattypes.session_type(list(reversed(pairs)))


@pytest.mark.parametrize(
    ("modalities", "word"), [(["MR"], "MR"), (["SEG"], "OT"), (["CT", "PT"], "PT"), ([""], "OT"), ([], "OT")]
)
def test_a_series_with_a_shared_number_is_named_as_xnat_names_it(modalities, word):
    assert xnattypes.series_modality(modalities) == word


@pytest.mark.parametrize(
    ("xsi_type", "word"),
    [("xnat:petScanData", "PT"), ("xnat:ctScanData", "CT"), ("xnat:segScanData", "OT"), ("", "OT")],
)
def test_the_word_of_a_scan_follows_from_its_type(xsi_type, word):
    assert xnattypes.scan_word(xsi_type) == word


@pytest.mark.parametrize("sop_class", [CT, MR, ENHANCED_MR, PET, RTDOSE, BASIC_SR, TOMO, ""])
def test_images_proper_go_to_the_resource_dicom(sop_class):
    assert xnattypes.resource(sop_class) == "DICOM"


@pytest.mark.parametrize(
    "sop_class", [SC, SEG, RTSTRUCT, RTPLAN, DOSE_SR, KO, RAW, CSA, ENHANCED_MR_COLOR, "1.2.3"]
)
def test_everything_else_goes_to_the_resource_secondary(sop_class):
    assert xnattypes.resource(sop_class) == "secondary"


def test_the_content_of_a_resource_is_what_xnat_writes():
    assert xnattypes.resource_content("DICOM") == "RAW"
    assert xnattypes.resource_content("secondary") == "secondary"


@pytest.mark.parametrize(
    ("date", "iso"),
    [
        ("20200312", "2020-03-12"),
        ("1994.11.05", "1994-11-05"),
        ("2020-03-12", "2020-03-12"),
        (" 20200312 ", "2020-03-12"),
        ("20201312", ""),
        ("20200300", ""),
        ("2020.0312", ""),
        ("***", ""),
        ("", ""),
        ("٢٠٢٠٠٣١٢", ""),
    ],
)
def test_dates_are_written_as_xnat_takes_them(date, iso):
    assert xnattypes.iso_date(date) == iso
