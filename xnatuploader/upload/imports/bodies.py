"""Request bodies of an import: archives and single files, of a length known before the first byte."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from xnatuploader.upload import tar_body, zip_body


class Single(tar_body.Part):
    """One DICOM file as it is (`application/dicom`): XNAT calls every such body `upload.dcm`."""

    content_type = "application/dicom"

    def __init__(self, file: tar_body.Outgoing) -> None:
        super().__init__([file], framed=False)
        name = file.name.rpartition("/")[2]
        self.name = name if name.lower().endswith(".dcm") else f"{name}.dcm"


class Form(Single):
    """One DICOM file as a form's only part: only so XNAT gives a single file its own name."""

    def __init__(self, file: tar_body.Outgoing) -> None:
        super().__init__(file)
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        name = file.name.rpartition("/")[2]
        self._before = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/dicom\r\n\r\n"
        ).encode()
        self._behind = f"\r\n--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._before) + super().__len__() + len(self._behind)

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        yield from super().__iter__()
        yield self._behind


def archives(
    files: Sequence[tar_body.Outgoing], limit_bytes: int, limit_files: int, *, tar: bool
) -> list[tar_body.Part]:
    """Divide `files` into archives with at most that many bytes of content and that many files each.

    They are zips where XNAT reads no `tar`, or where one cannot hold a file.
    """
    some = tar_body.batches(files, limit_bytes, limit_files)
    return [
        tar_body.Part(one) if tar and all(map(tar_body.fits_archive, one)) else zip_body.Zip(one)
        for one in some
    ]
