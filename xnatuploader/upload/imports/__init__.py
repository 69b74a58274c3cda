"""Sessions through XNAT's import service instead of scan by scan: the way to have XNAT's own anonymisation applied.

XNAT decides where the files of an import end; so what counts is what the archive or the prearchive lists
afterwards, never what the import answered.
"""
