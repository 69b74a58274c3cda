"""DICOM headers: one file, many files, and what a DICOM object is to XNAT."""
