"""Copies of DICOM files without what identifies the patient, by the Basic Profile of PS3.15: complete, or none.

`cleaner.Cleaner(policy, key).clean(path, subject)` makes one; docs/deidentification.md says what is done and why.
"""
