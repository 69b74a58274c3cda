"""The option columns of DICOM PS3.15 table E.1-1, by keyword.

The Basic Profile's column comes from dicom-anonymizer, which generates it from the standard; it has none of
the options. These lists are the option columns of September 2024. Rows that are newer stand in no list
here, so that they are protected whatever option is chosen. The columns for dates are not listed: they hold
every attribute of the table with VR DA, DT or TM but three, and three others (`profile`).
"""

from __future__ import annotations


def keywords(text: str) -> frozenset[str]:
    """Return the keywords of a list that is written as text."""
    return frozenset(text.split())


PATIENT_KEPT = keywords(
    """
    EthnicGroup EthnicGroupCodeSequence PatientAge PatientSex PatientSexNeutered PatientSize
    PatientWeight PregnancyStatus SelectorASValue SmokingStatus
    """
)
"""Column "Rtn. Pat. Chars. Opt.", action K."""

PATIENT_CLEANED = keywords("Allergies PatientState PreMedication SpecialNeeds")
"""Column "Rtn. Pat. Chars. Opt.", action C."""

DEVICE_KEPT = keywords(
    """
    BeamHoldTransitionDateTime CalibrationDate CalibrationDateTime CalibrationTime CassetteID
    DateOfInstallation DateOfLastCalibration DateOfLastDetectorCalibration DateOfManufacture
    DateTimeOfLastCalibration DetectorID DeviceDescription DeviceLabel DeviceSerialNumber DeviceUID
    GantryID GeneratorID LensMake LensModel LensSerialNumber LensSpecification
    ManufacturerDeviceClassUID ManufacturerDeviceIdentifier ModifyingDeviceID ModifyingSystem
    PerformedStationGeographicLocationCodeSequence PerformedStationName PerformedStationNameCodeSequence
    PlateID ScheduledProcedureStepLocation ScheduledStationGeographicLocationCodeSequence
    ScheduledStationName ScheduledStationNameCodeSequence ScheduledStudyLocation SourceManufacturer
    SourceSerialNumber StationName TimeOfLastCalibration TimeOfLastDetectorCalibration
    TransducerIdentificationSequence TreatmentMachineName UDISequence UniqueDeviceIdentifier
    XRayDetectorID XRayDetectorLabel XRaySourceID
    """
)
"""Column "Rtn. Dev. Id. Opt.", action K."""

DEVICE_CLEANED = keywords(
    """
    DestinationAE NetworkID Originator PerformedStationAETitle ReceivingAE RequestingAE RetrieveAETitle
    ScheduledStationAETitle ScheduledStudyLocationAETitle SelectorAEValue StationAETitle
    """
)
"""Column "Rtn. Dev. Id. Opt.", action C."""

DESCRIPTORS_CLEANED = keywords(
    """
    AcquisitionComments AcquisitionDeviceProcessingDescription AcquisitionFieldOfViewLabel
    AcquisitionProtocolDescription AdditionalPatientHistory AdmittingDiagnosesCodeSequence
    AdmittingDiagnosesDescription Allergies AnnotationGroupDescription AnnotationGroupLabel
    BeamDescription BolusDescription ClinicalTrialSeriesDescription ClinicalTrialTimePointDescription
    CommentsOnRadiationDose CommentsOnThePerformedProcedureStep CompensatorDescription
    ConceptualVolumeCombinationDescription ConceptualVolumeDescription ContainerDescription
    ContrastBolusAgent ContributionDescription DecompositionDescription DerivationDescription
    DeviceSettingDescription DischargeDiagnosisDescription DisplacementReferenceLabel
    DoseReferenceDescription EntityDescription EntityLabel EntityLongLabel EntityName
    EquipmentFrameOfReferenceDescription FilterLookupTableDescription FixationDeviceDescription
    FractionGroupDescription FractionationNotes FrameComments IdentifyingComments ImageComments
    ImagingServiceRequestComments Impressions InterlockDescription InterlockOriginDescription
    InterpretationDiagnosisDescription InterpretationText LabelText LongDeviceDescription MakerNote
    MedicalAlerts MultienergyAcquisitionDescription Occupation PatientComments
    PatientSetupPhotoDescription PatientState PatientTreatmentPreparationMethodDescription
    PatientTreatmentPreparationProcedureParameterDescription PerformedProcedureStepDescription
    PositionAcquisitionTemplateDescription PositionAcquisitionTemplateName PrescriptionDescription
    PrescriptionNotes PrescriptionNotesSequence PriorTreatmentDoseDescription ProtocolName
    PyramidDescription PyramidLabel ROIDescription ROIGenerationDescription ROIName
    ROIObservationDescription ROIObservationLabel RTPhysicianIntentNarrative RTPlanDescription
    RTPlanLabel RTPlanName RTPrescriptionLabel RTToleranceSetLabel RTTreatmentApproachLabel
    RadiationDoseIdentificationLabel RadiationDoseInVivoMeasurementLabel
    RadiationGenerationModeDescription RadiationGenerationModeLabel ReasonForOmissionDescription
    ReasonForRequestedProcedureCodeSequence ReasonForStudy ReasonForSuperseding
    ReasonForTheAttributeModification ReasonForTheImagingServiceRequest ReasonForTheRequestedProcedure
    ReasonForVisit ReasonForVisitCodeSequence RequestAttributesSequence RequestedContrastAgent
    RequestedProcedureComments RequestedProcedureDescription RequestedSeriesDescription
    RespiratoryMotionCompensationTechniqueDescription ResultsComments ScheduledProcedureStepDescription
    SelectorLOValue SelectorLTValue SelectorSHValue SelectorSTValue SelectorUTValue SeriesDescription
    ServiceEpisodeDescription SetupTechniqueDescription ShieldingDeviceDescription
    SpecimenDetailedDescription SpecimenShortDescription StructureSetDescription StructureSetLabel
    StructureSetName StudyComments StudyDescription TreatmentPositionGroupLabel TreatmentSite
    TreatmentSites TreatmentTechniqueNotes TreatmentToleranceViolationDescription UserContentLabel
    UserContentLongLabel VisitComments WaveformFilterDescription
    """
)
"""Column "Clean Desc. Opt.", action C."""

DATES_NOT_RETAINED = frozenset({"PatientBirthDate", "PatientBirthTime", "GPSTimeStamp"})
"""Dates and times of the table for which "Rtn. Long. Full/Modif. Dates Opt." say nothing."""

TIMESTAMPS = frozenset({"CertifiedTimestamp", "FrameOriginTimestamp", "TimezoneOffsetFromUTC"})
"""Attributes of other VRs that both date columns name."""
