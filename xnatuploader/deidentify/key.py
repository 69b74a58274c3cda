"""The secret key from which new UIDs and date shifts are made, and its file.

Everything that has to be the same in the next run and in a later batch (a UID's new UID, a subject's shift) is a
keyed hash (HMAC-SHA256, RFC 2104) of the old value. So nothing but 32 bytes has to be kept, and without them
nobody can test a guess about an old value.
"""

from __future__ import annotations

import hmac
import os
import secrets
import unicodedata
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from xnatuploader import errors, paths
from xnatuploader.dicom.elements import STANDARD_UIDS

FILE_NAME = "deidentify.key"

_HEAD = "xnatuploader de-identification key 1: keep a copy in a safe place, share it with nobody"
_BYTES = 32
_SHIFT_LEAST, _SHIFT_MOST = 30, 3650
"""Days. Less than a month would leave the season and often the visit; ten years keep dates believable."""


@dataclass(frozen=True, slots=True)
class Key:
    """The secret key. Its text form shows only the fingerprint, so that it is never logged by mistake."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != _BYTES:
            raise ValueError(f"a key has {_BYTES} bytes, not {len(self.secret)}")

    def __str__(self) -> str:
        return f"key {self.fingerprint}"

    @classmethod
    def load(cls, folder: Path | None = None) -> Key:
        """Return the key kept in `folder` (default: the user's configuration folder); make it on first use.

        Raises `errors.KeyUnusable` when it cannot be read or made, or is damaged. A damaged key is never
        replaced: a new one would give the same patient new UIDs.
        """
        path = (paths.config_folder() if folder is None else folder) / FILE_NAME
        try:
            if not path.exists():
                _make(path)
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise errors.KeyUnusable(
                f"The de-identification key {path} cannot be read or made ({_reason(error)}). "
                "Give this user the right to read and write it, or put back your copy of it."
            ) from error
        head, secret, *_ = [*text.split("\n"), ""]
        try:
            return cls(bytes.fromhex(secret if head.strip() == _HEAD else ""))
        except ValueError:
            raise errors.KeyUnusable(
                f"The de-identification key {path} is damaged. Put back your copy of it; only if there is none, "
                "delete it: a new key is made then, and patients sent before get new UIDs."
            ) from None

    @property
    def fingerprint(self) -> str:
        """Eight hex digits by which people can tell keys apart; says nothing about the key."""
        return self._hash("fingerprint", "")[:4].hex()

    def uid(self, uid: str) -> str:
        """Return the new UID for `uid`: a UUID-derived UID (2.25., PS3.5 B.2) made from its keyed hash.

        UIDs that the standard defines (well-known frames of reference and the like) stay as they are, and so does
        an empty one.
        """
        old = uid.strip(" \0")
        if not old or old.startswith(STANDARD_UIDS):
            return old
        return f"2.25.{uuid.UUID(bytes=self._hash('uid', old)[:16], version=4).int}"

    def days(self, subject: str) -> int:
        """Return the number of days (negative: into the past) by which the dates of `subject` move."""
        number = int.from_bytes(self._hash("days", unicodedata.normalize("NFC", subject))[:8], "big")
        return -(_SHIFT_LEAST + number % (_SHIFT_MOST - _SHIFT_LEAST + 1))

    def _hash(self, purpose: str, text: str) -> bytes:
        # With the purpose, a UID and a subject of the same text have different hashes.
        return hmac.digest(self.secret, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), "sha256")


def _make(path: Path) -> None:
    """Write a new key file completely or not at all, and never over an existing one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{_HEAD}\n{secrets.token_bytes(_BYTES).hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        _publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)  # unlike a rename it fails when another process was first
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.replace(path)


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "not a text file"
