"""Sessions through XNAT's import service instead of scan by scan: so XNAT's own anonymisation is applied.

XNAT decides where the files of an import end; so what counts is what the archive or the prearchive lists
afterwards, never what the import answered.
"""
