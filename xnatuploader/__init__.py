"""Upload folders of DICOM files to XNAT, steered by a spreadsheet."""

__version__ = "2.0.0"
