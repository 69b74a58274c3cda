"""Mutated DICOM headers: our walk and pydicom must agree on each, and none may raise an exception.

`python -m tests.helpers.fuzzing --count 20000 --seed 1` prints what it did and every difference, and ends with 1
if there was one. The suite runs a short form of it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import random
import struct
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pydicom
from pydicom import filereader
from pydicom.multival import MultiValue

from tests.helpers import builders
from xnatuploader.dicom import elements, header, reader

FIELDS = (
    "PatientName",
    "PatientID",
    "Rows",
    "SliceThickness",
    "PixelSpacing",
    "FrameIncrementPointer",
    "0019,1001",
)
PLAN = reader.plan(FIELDS, reader.Rules())
WANTED = frozenset(PLAN.tags) | {elements.CHARACTER_SET}
LAST = max(WANTED)
HEAD = 6000
"""Mutations change the first so many bytes of a file."""


def seeds() -> dict[str, bytes]:
    """Return well-made files in each syntax and shape."""
    referenced = [builders.dataset(pixels=None), builders.dataset(pixels=None)]
    made: dict[str, bytes] = {}
    for syntax in builders.SYNTAXES:
        made[syntax] = builders.dicom_bytes(transfer_syntax=syntax)
        made[f"{syntax} private"] = builders.dicom_bytes(transfer_syntax=syntax, private=12)
        made[f"{syntax} sequence"] = builders.dicom_bytes(
            transfer_syntax=syntax, ReferencedImageSequence=referenced, ReferencedStudySequence=[]
        )
        made[f"{syntax} undefined"] = _with_undefined_lengths(syntax, referenced)
    made["no meta explicit"] = builders.dicom_bytes(meta=False)
    made["no meta implicit"] = builders.dicom_bytes(meta=False, transfer_syntax="implicit")
    made["japanese"] = builders.dicom_bytes(
        SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう"
    )
    made["numbers"] = builders.dicom_bytes(
        SliceThickness="5.0 ", PixelSpacing=["0.5", "0.25"], FrameIncrementPointer=[0x00181063, 0x00181065]
    )
    return made


def pydicoms_own() -> dict[str, bytes]:
    """Return the test files that come with pydicom (its own function for that would use the network)."""
    folder = Path(pydicom.__file__).parent / "data"
    files = sorted(
        file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")
    )
    return {
        f"pydicom {file.relative_to(folder).as_posix()}": file.read_bytes()
        for file in files
        if file.stat().st_size < 300_000
    }


def _with_undefined_lengths(syntax: str, referenced: list[pydicom.Dataset]) -> bytes:
    outer = builders.dataset(pixels=None, ReferencedImageSequence=referenced)
    for element in outer:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
    sequence = pydicom.Sequence([outer])
    whole = builders.dicom_bytes(transfer_syntax=syntax, ReferencedStudySequence=sequence)
    read = pydicom.dcmread(io.BytesIO(whole))
    read["ReferencedStudySequence"].is_undefined_length = True
    read["ReferencedStudySequence"].value[0].is_undefined_length_sequence_item = True
    target = io.BytesIO()
    read.save_as(target)
    return target.getvalue()


def mutated(random_: random.Random, data: bytes) -> bytes:
    """Return `data` with one to three things wrong."""
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        data = random_.choice(MUTATIONS)(random_, data)
    return data


def _place(random_: random.Random, data: bytes, room: int = 1) -> int:
    return random_.randrange(max(min(len(data), HEAD) - room, 1))


def _flip_bit(random_: random.Random, data: bytes) -> bytes:
    at = _place(random_, data)
    return data[:at] + bytes([data[at] ^ 1 << random_.randrange(8)]) + data[at + 1 :] if data else data


def _set_bytes(random_: random.Random, data: bytes) -> bytes:
    fresh = random_.choice(
        (b"\0", b"\xff", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"UN", b"SQ", b"ZZ", b"\\")
    )
    at = _place(random_, data, len(fresh))
    return data[:at] + fresh + data[at + len(fresh) :]


def _truncate(random_: random.Random, data: bytes) -> bytes:
    return data[: _place(random_, data)]


def _delete(random_: random.Random, data: bytes) -> bytes:
    at = _place(random_, data)
    return data[:at] + data[at + random_.randrange(1, 40) :]


def _insert(random_: random.Random, data: bytes) -> bytes:
    at = _place(random_, data)
    return data[:at] + random_.randbytes(random_.randrange(1, 20)) + data[at:]


def _repeat(random_: random.Random, data: bytes) -> bytes:
    at = _place(random_, data)
    size = random_.randrange(1, 200)
    return data[:at] + data[at : at + size] * 2 + data[at + size :]


def _elements(data: bytes) -> list[int]:
    """Return where elements seem to begin: two letters of a VR four bytes on."""
    return [
        at
        for at in range(0, min(len(data), HEAD) - 8)
        if data[at + 4 : at + 6] in elements.SHORT_VRS | elements.LONG_VRS and data[at + 1] == 0
    ]


def _wrong_length(random_: random.Random, data: bytes) -> bytes:
    places = _elements(data)
    if not places:
        return _flip_bit(random_, data)
    at = random_.choice(places)
    length = random_.choice((0, 1, 2, 7, 8, 100, 0xFFFF, 0xFFFFFFFF, random_.randrange(300)))
    long_form = data[at + 4 : at + 6] in elements.LONG_VRS
    field = struct.pack("<L", length) if long_form else struct.pack("<H", length & 0xFFFF)
    start = at + (8 if long_form else 6)
    return data[:start] + field + data[start + len(field) :]


def _wrong_vr(random_: random.Random, data: bytes) -> bytes:
    places = _elements(data)
    if not places:
        return _flip_bit(random_, data)
    at = random_.choice(places) + 4
    vr = random_.choice((*sorted(elements.SHORT_VRS | elements.LONG_VRS), b"XX", b"\0\0", b"ox"))
    return data[:at] + vr + data[at + 2 :]


MUTATIONS = (
    _flip_bit,
    _flip_bit,
    _set_bytes,
    _truncate,
    _delete,
    _insert,
    _repeat,
    _wrong_length,
    _wrong_length,
    _wrong_vr,
)


@dataclasses.dataclass
class Tally:
    """How often each thing happened: it shows when a run compared nothing."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def difference(data: bytes, tally: Tally) -> str:
    """Return how the walk and pydicom differ on a file's bytes; '' if they agree or the walk leaves it to pydicom."""
    walked = by_walk(data)
    tally.counts["walked" if walked else "left to pydicom"] += 1
    if walked is None:
        return ""
    begin = header.begin(data)
    assert begin is not None
    source = bytes_source(data)
    try:
        found, _ = reader.by_pydicom(source, WANTED, LAST)
    except Exception as error:
        if LAST in walked.elements:
            tally.counts["pydicom failed behind the last wanted tag"] += 1
            return ""
        return f"the walk finds {sorted(walked.elements)} where pydicom fails with {error!r}"
    if found.cut or _comparable(found) != _comparable(walked) or found.ended != walked.ended:
        return f"walk: {walked}\npydicom: {found}"
    return text_difference(data, walked, tally)


def _comparable(found: header.Header) -> dict[int, tuple[bytes, bytes]]:
    """Return the elements; of the character set, which pydicom gives back converted, only the text."""
    charset = found.elements.get(elements.CHARACTER_SET, (b"", b""))[1].rstrip(b" \0")
    return found.elements | {elements.CHARACTER_SET: (b"", charset)}


def bytes_source(data: bytes) -> header.Source:
    """Return the source of bytes that are in memory."""
    return lambda offset, size: data[offset : offset + size]


def by_walk(data: bytes) -> header.Header | None:
    """Return what our walk finds; None where it leaves the file to pydicom."""
    begin = header.begin(data[: header.FIRST_READ])
    if begin is None or not header.looks_like_dicom(data) or begin.syntax in elements.DEFLATED:
        return None
    source = bytes_source(data)
    first = data[: header.FIRST_READ]
    return header.walk(first, begin.offset, begin.implicit, WANTED, LAST, source)


def text_difference(data: bytes, walked: header.Header, tally: Tally) -> str:
    """Return how our texts differ from pydicom's values; values that pydicom cannot convert are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = filereader.read_partial(
                io.BytesIO(data),
                force=True,
                stop_when=lambda tag, *_: tag > LAST,
                specific_tags=sorted(WANTED),
            )
        except Exception:
            tally.counts["pydicom failed behind the last wanted tag"] += 1
            return ""
        charset = walked.elements.get(elements.CHARACTER_SET, (b"", b""))[1]
        for tag, (vr, value) in walked.elements.items():
            name = vr.decode() if vr not in (b"", b"UN") else PLAN.vrs.get(tag, "CS") or "UN"
            ours = reader.text(name, value, charset)
            try:
                element = dataset[tag]
                theirs = _as_text(element.value)
            except Exception:
                tally.counts["value that pydicom cannot convert"] += 1
                continue
            if theirs is None or name != element.VR:
                tally.counts["binary or another VR"] += 1
            elif name == "IS" and "." in ours:
                # No integer; pydicom rewrites it as a float, we leave it as it is.
                tally.counts["value that pydicom cannot convert"] += 1
            elif ours != theirs:
                return f"{tag:08x} {name} {value!r} {charset!r}: ours {ours!r}, pydicom's {theirs!r}"
            else:
                tally.counts["equal text"] += 1
    return ""


def _as_text(value: object) -> str | None:
    if value is None:
        return ""
    if isinstance(value, (MultiValue, list)):
        return "\\".join(_as_text(one) or "" for one in value)
    if isinstance(value, (bytes, pydicom.Sequence)):
        return None
    return str(value)


def reading_difference(path: Path, tally: Tally) -> str:
    """Return how whole readings differ when the walk is switched off; '' where they are equal."""
    ours = reader.Reader(PLAN).read(str(path))
    with mock.patch.object(header, "walk", return_value=None):
        theirs = reader.Reader(PLAN).read(str(path))
    tally.counts[f"status {ours[0] or 'empty'}"] += 1
    if ours == theirs:
        return ""
    walked = by_walk(path.read_bytes())
    if walked is not None and LAST in walked.elements:
        # pydicom looks at the element behind the last wanted one, and may fail there.
        return ""
    return f"with the walk {ours}\nwithout {theirs}"


def run(count: int, seed: int, folder: Path, tally: Tally) -> Iterator[str]:
    """Mutate and compare `count` files; give each difference with what is needed to see it again."""
    random_ = random.Random(seed)
    ours, theirs = sorted(seeds().items()), sorted(pydicoms_own().items())
    path = folder / "mutated.dcm"
    for number in range(count):
        name, data = random_.choice(random_.choice((ours, theirs)))
        data = mutated(random_, data)
        path.write_bytes(data)
        found = difference(data, tally) or reading_difference(path, tally)
        if found:
            kept = folder / f"different-{seed}-{number}.dcm"
            kept.write_bytes(data)
            yield f"{number} ({name}, kept as {kept.name}): {found}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where differing files are kept")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fuzzing-"))
    folder.mkdir(parents=True, exist_ok=True)
    tally, different = Tally(), 0
    for found in run(options.count, options.seed, folder, tally):
        different += 1
        print(found)
    for what, number in sorted(tally.counts.items()):
        print(f"{number:8} {what}")
    print(f"{different} of {options.count} differ (seed {options.seed}, {folder})")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
