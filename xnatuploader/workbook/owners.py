"""Who has the workbook open: the files that Excel and LibreOffice lay beside one."""

from __future__ import annotations

from pathlib import Path

from xnatuploader import errors
from xnatuploader.workbook import package

_EXCEL_NAME_BYTES = 54
"""Excel's owner file: a length, the user's name in 54 bytes, then a length and the name in UTF-16."""


def probe(path: Path) -> None:
    """Raise SpreadsheetLocked if the workbook could not be written now, naming who has it open if known.

    On Windows an open workbook refuses to be opened for writing. Excel's owner file (`~$files.xlsx`) and
    LibreOffice's lock (`.~lock.files.xlsx#`) tell of programs on other machines, and of those on Linux.
    """
    for name, owner_in in ((f"~${path.name}", _excel_owner), (f".~lock.{path.name}#", _libreoffice_owner)):
        mark = path.with_name(name)
        if mark.exists():
            try:
                owner = owner_in(mark.read_bytes())
            except OSError:  # Excel does not let us read it
                owner = ""
            who = f" ({owner})" if owner else ""
            raise errors.SpreadsheetLocked(
                f"{path} is open in another program{who}. Close it there, and run the same command again. "
                f"(If nobody has it open, delete the file {mark.name} beside it.)"
            )
    try:
        package.open_for_writing(path).close()
    except FileNotFoundError:
        return
    except OSError as error:
        raise package.not_written(path, error) from error


def _excel_owner(content: bytes) -> str:
    """Return the name in an owner file."""
    wide = content[_EXCEL_NAME_BYTES + 3 :]
    if wide:
        length = content[_EXCEL_NAME_BYTES + 1]
        return _clean(wide[: length * 2].decode("utf-16-le", errors="replace"))
    return _clean(content[1 : 1 + content[0]].decode("cp1252", errors="replace")) if content else ""


def _libreoffice_owner(content: bytes) -> str:
    """Return user and host: the fields of the lock are name, login, host, time, profile."""
    fields = content.decode("utf-8", errors="replace").split(",")
    name, login, host, *_ = (*map(_clean, fields), "", "")
    name = name or login
    return f"{name} on {host}" if name and host else name


def _clean(text: str) -> str:
    return "".join(char for char in text if char.isprintable()).strip()
