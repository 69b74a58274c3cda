"""Zips of files: read by others, of the length that was promised, and bounded in memory and on disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tests.helpers.outgoing import held, of_sizes, spoil, written
from xnatuploader import xnat
from xnatuploader.upload import tar_body, zip_body

SIZES = (0, 1, 65535, 65536, 1 << 20, (1 << 20) + 1, 65535 * 17, 3_000_000)


def read_back(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def sent(body: tar_body.Part) -> bytes:
    with body.ready():
        data = b"".join(body)
        assert len(data) == len(body)
        assert b"".join(body) == data, "a body may be sent a second time"
    return data


def test_a_zip_holds_every_file_and_is_as_long_as_it_said() -> None:
    files = of_sizes(*SIZES)
    body = zip_body.Zip(files)
    data = sent(body)
    assert read_back(data) == {file.name: file.source for file in files}
    assert body.digests == {file.name: hashlib.md5(file.source).hexdigest() for file in files}  # type: ignore[arg-type]
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        for one in opened.infolist():
            assert one.compress_type == zipfile.ZIP_STORED
            assert not one.flag_bits & 8, "Java reads no stored member whose CRC comes behind it"


@pytest.mark.parametrize(("limit", "many"), [(0xFFFFFFFF, 3), (200_000, 0xFFFF), (200_000, 3)])
def test_a_zip_too_large_for_the_plain_format_uses_zip64(
    monkeypatch: pytest.MonkeyPatch, limit: int, many: int
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", many)
    files = of_sizes(1000, 150_000, 150_000, 1000, 70)
    data = sent(zip_body.Zip(files))
    assert b"PK\x06\x06" in data
    assert read_back(data) == {file.name: file.source for file in files}


JAVA = """
import java.io.*; import java.util.zip.*;
public class Z { public static void main(String[] a) throws Exception {
  ZipInputStream z = new ZipInputStream(new FileInputStream(a[0])); ZipEntry e; byte[] b = new byte[65536];
  while ((e = z.getNextEntry()) != null) { long n = 0; int r; while ((r = z.read(b)) > 0) n += r;
    System.out.println(n); } } }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java, as XNAT does")
def test_java_reads_a_zip_as_it_arrives(tmp_path: Path) -> None:
    (tmp_path / "Z.java").write_text(JAVA)
    (tmp_path / "a.zip").write_bytes(sent(zip_body.Zip(of_sizes(*SIZES))))
    said = subprocess.run(
        ["java", "Z.java", "a.zip"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert [int(line) for line in said.stdout.split()] == list(SIZES), said.stderr


def test_a_zip_for_which_there_is_no_room_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile, "ZipFile", full)
    with (
        pytest.raises(xnat.RequestFailed, match="No space left on device"),
        zip_body.Zip(of_sizes(*SIZES)).ready(),
    ):
        pass


@pytest.mark.parametrize("change", ["grown", "shrunk", "touched", "gone", "folder", "emptied"])
def test_a_small_file_that_changed_is_left_out(tmp_path: Path, change: str) -> None:
    files = [written(tmp_path, n, n.encode() * 800) for n in ("a", "b", "c")]
    body = zip_body.Zip(files)
    spoil(tmp_path / "b", change)
    assert set(read_back(sent(body))) == {"a", "c"} == set(body.digests)
    assert set(body.left_out) == {"b"}
    assert [file.name for file in body.included()] == ["a", "c"]


def test_what_a_document_names_is_not_left_out(tmp_path: Path) -> None:
    body = zip_body.Zip([written(tmp_path, "a", b"x" * 800)], [held("catalog.xml", b"<a/>")])
    spoil(tmp_path / "a", "grown")
    with pytest.raises(tar_body.FileChanged), body.ready():
        pass


@pytest.mark.parametrize("change", ["grown", "shrunk", "touched", "gone"])
def test_a_large_file_that_changed_breaks_the_zip_off_before_a_byte_is_sent(
    tmp_path: Path, change: str
) -> None:
    body = zip_body.Zip([held("b", b"1"), written(tmp_path, "a", b"x" * (3 * tar_body.CHUNK))])
    spoil(tmp_path / "a", change)
    with pytest.raises(tar_body.FileChanged, match="while it was being sent"), body.ready():
        pass


def test_the_callback_gets_the_bytes_and_the_files_so_far() -> None:
    calls: list[tuple[int, int]] = []
    body = zip_body.Zip(of_sizes(10, 3 * tar_body.CHUNK, 10))
    body.watch = lambda size, count: calls.append((size, count))
    data = sent(body)[:]
    assert calls[0] == (tar_body.CHUNK, 1)
    assert (len(data), 3) in calls


@pytest.mark.slow
def test_a_large_file_costs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    with path.open("wb") as stream:
        stream.truncate(300 * tar_body.CHUNK)
    found = path.stat()
    body = zip_body.Zip([tar_body.Outgoing("a", "a", found.st_size, path, found.st_mtime_ns)])
    tracemalloc.start()
    with body.ready():
        total = sum(len(chunk) for chunk in body)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == len(body)
    assert peak < 8 * tar_body.CHUNK
