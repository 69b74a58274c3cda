"""Archive parts: exact lengths, digests on the way, and files that change under our hands."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.builders import md5
from tests.helpers.outgoing import looked_at, spoil, written
from xnatuploader.upload import tar_body


def members(body: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


sizes = st.sampled_from([0, 1, 511, 512, 513, 10_000, tar_body.CHUNK - 1, tar_body.CHUNK, tar_body.CHUNK + 1])


@settings(max_examples=30, deadline=None)
@given(st.lists(sizes | st.integers(0, 3000), max_size=12))
def test_a_part_is_a_tar_of_its_files_with_the_length_and_digests_it_says(lengths: list[int]) -> None:
    contents = {f"f{number}.dcm": os.urandom(length) for number, length in enumerate(lengths)}
    part = tar_body.Part([tar_body.Outgoing(n, n, len(data), data) for n, data in contents.items()])
    body = b"".join(part)
    assert len(body) == len(part)
    assert len(body) % 10240 == 0
    assert members(body) == contents
    assert part.digests == {name: md5(data) for name, data in contents.items()}
    assert part.left_out == {}


def test_files_on_disk_arrive_whole_small_and_large(tmp_path: Path) -> None:
    contents = {"a.dcm": b"a" * 700, "b.dcm": os.urandom(3 * tar_body.CHUNK + 17), "c.dcm": b"", "d": b"d"}
    part = tar_body.Part([written(tmp_path, name, data) for name, data in contents.items()])
    assert members(b"".join(part)) == contents
    assert part.digests == {name: md5(data) for name, data in contents.items()}


def test_a_part_can_be_read_again_for_another_attempt(tmp_path: Path) -> None:
    part = tar_body.Part([written(tmp_path, f"{n}.dcm", bytes([n]) * 999) for n in range(20)])
    first = b"".join(part)
    broken_off = iter(part)
    next(broken_off)
    broken_off.close()
    assert b"".join(part) == first
    assert len(part.digests) == 20


def test_chunks_are_about_a_mebibyte_however_many_files_there_are(tmp_path: Path) -> None:
    part = tar_body.Part([written(tmp_path, f"{n}.dcm", b"x" * 10_000) for n in range(300)])
    chunks = [len(chunk) for chunk in part]
    assert max(chunks) <= 2 * tar_body.CHUNK
    assert len(chunks) <= 4


@pytest.mark.slow
def test_a_large_file_costs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    with path.open("wb") as stream:
        stream.truncate(300 * tar_body.CHUNK)  # sparse: takes no room on disk
    part = tar_body.Part([looked_at(path)])
    tracemalloc.start()
    total = sum(len(chunk) for chunk in part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == len(part)
    assert peak < 8 * tar_body.CHUNK


def test_the_body_of_a_single_file_is_its_bytes(tmp_path: Path) -> None:
    data = os.urandom(tar_body.CHUNK + 5)
    part = tar_body.Part([written(tmp_path, "a.dcm", data)], framed=False)
    assert len(part) == len(data)
    assert b"".join(part) == data
    assert part.digests == {"a.dcm": md5(data)}


def test_an_empty_file_is_a_body_of_no_bytes_that_is_still_true(tmp_path: Path) -> None:
    part = tar_body.Part([written(tmp_path, "empty", b"")], framed=False)
    assert part
    assert b"".join(part) == b""
    assert part.digests == {"empty": md5(b"")}


def test_a_body_without_frame_holds_one_file() -> None:
    two = [tar_body.Outgoing(n, n, 1, b"x") for n in "ab"]
    with pytest.raises(ValueError):
        tar_body.Part(two, framed=False)


@pytest.mark.parametrize("change", ["grown", "shrunk", "touched", "gone", "folder", "emptied"])
def test_a_small_file_that_changed_is_left_out_and_the_length_is_kept(tmp_path: Path, change: str) -> None:
    first, middle, last = (written(tmp_path, n, n.encode() * 800) for n in ("a", "b", "c"))
    part = tar_body.Part([first, middle, last])
    spoil(tmp_path / "b", change)
    body = b"".join(part)
    assert len(body) == len(part)
    assert set(members(body)) == {"a", "c"}
    assert set(part.digests) == {"a", "c"}
    assert set(part.left_out) == {"b"}


@pytest.mark.parametrize("change", ["grown", "shrunk", "touched", "gone"])
def test_a_large_file_that_changed_breaks_the_attempt_off_before_it_is_complete(
    tmp_path: Path, change: str
) -> None:
    part = tar_body.Part([written(tmp_path, "big", b"x" * (3 * tar_body.CHUNK))])
    spoil(tmp_path / "big", change)
    with pytest.raises(tar_body.FileChanged, match="while it was being sent") as caught:
        b"".join(part)
    assert caught.value.name == "big"
    assert part.digests == {}


@pytest.mark.parametrize("change", ["grown", "shrunk", "touched"])
def test_a_change_in_the_middle_of_a_large_file_breaks_off_before_its_last_chunk(
    tmp_path: Path, change: str
) -> None:
    part = tar_body.Part([written(tmp_path, "big", b"x" * (3 * tar_body.CHUNK))], framed=False)
    body = iter(part)
    received = len(next(body))
    spoil(tmp_path / "big", change)
    chunks: list[int] = []
    with pytest.raises(tar_body.FileChanged):
        chunks.extend(map(len, body))
    assert received + sum(chunks) < len(part)


def test_a_single_file_that_changed_is_never_sent_as_something_else(tmp_path: Path) -> None:
    part = tar_body.Part([written(tmp_path, "a", b"x" * 800)], framed=False)
    spoil(tmp_path / "a", "gone")
    with pytest.raises(tar_body.FileChanged):
        b"".join(part)


def test_many_files_that_vanished_break_the_attempt_off_instead_of_sending_zeros(tmp_path: Path) -> None:
    files = [written(tmp_path, f"{n}", b"x" * 200_000) for n in range(10)]
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(tar_body.FileChanged):
        b"".join(tar_body.Part(files))


def test_a_read_that_returns_little_at_a_time_still_reads_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a raw read on a network drive may."""
    data = os.urandom(5000)
    part = tar_body.Part([written(tmp_path, "a", data)])
    real = Path.open

    class Slow(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 700)) or b""

    def opened(self: Path, *args: object, **kwargs: object) -> object:
        return Slow(str(self)) if self.name == "a" else real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", opened)
    assert members(b"".join(part)) == {"a": data}


def test_a_file_of_which_less_can_be_read_than_its_size_says_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another computer on a network drive cuts it, and sizes are still remembered here."""
    files = [written(tmp_path, "a", b"x" * 900), written(tmp_path, "b", b"y" * 900)]
    real = Path.open

    class Short(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(500) if self.tell() == 0 else b""

    def opened(self: Path, *args: object, **kwargs: object) -> object:
        return Short(str(self)) if self.name == "a" else real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", opened)
    part = tar_body.Part(files)
    body = b"".join(part)
    assert len(body) == len(part)
    assert members(body) == {"b": b"y" * 900}
    assert set(part.left_out) == {"a"}


def test_parts_are_bounded_by_bytes_and_by_number_and_keep_the_order() -> None:
    files = [tar_body.Outgoing(str(n), str(n), 100, b"x" * 100) for n in range(10)]
    by_bytes = tar_body.plan_parts(files, limit_bytes=350)
    assert [[o.name for o in part.files] for part in by_bytes] == [
        ["0", "1", "2"],
        ["3", "4", "5"],
        ["6", "7", "8"],
        ["9"],
    ]
    by_number = tar_body.plan_parts(files, limit_files=4)
    assert [len(part.files) for part in by_number] == [4, 4, 2]
    assert tar_body.plan_parts([]) == []


def test_a_file_as_large_as_a_part_travels_alone_and_unframed() -> None:
    files = [tar_body.Outgoing(n, n, s, b"") for n, s in (("a", 10), ("b", 5000), ("c", 10))]
    parts = tar_body.plan_parts(files, limit_bytes=1000)
    assert [(part.framed, [o.name for o in part.files]) for part in parts] == [
        (False, ["b"]),
        (True, ["a", "c"]),
    ]


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [("x" * 100, 1, True), ("x" * 101, 1, False), ("x", 8**11 - 1, True), ("x", 8**11, False)],
)
def test_what_a_plain_header_cannot_hold_travels_alone(name: str, size: int, fits: bool) -> None:
    file = tar_body.Outgoing(name, name, size, b"")
    assert tar_body.fits_archive(file) is fits
    assert tar_body.plan_parts([file], limit_bytes=2**40)[0].framed is fits


def test_the_longest_name_and_the_largest_size_read_back_from_a_header() -> None:
    name = "x" * 100
    part = tar_body.Part([tar_body.Outgoing(name, name, 0, b"")])
    assert members(b"".join(part)) == {name: b""}
    five_gigabytes = tar_body._tar_head("big", 5 * 10**9, b"%011o\x00" % 0)
    assert tarfile.TarInfo.frombuf(five_gigabytes, "ascii", "strict").size == 5 * 10**9


def test_halves_hold_the_same_files_until_one_is_left() -> None:
    files = [tar_body.Outgoing(str(n), str(n), 1, b"x") for n in range(5)]
    one, two = tar_body.halves(files)
    assert [*one, *two] == files
    assert (len(one), len(two)) == (2, 3)


def test_the_callback_gets_the_bytes_and_files_so_far(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    files = [written(tmp_path, "a", b"x" * 100), written(tmp_path, "b", b"x" * (2 * tar_body.CHUNK))]
    part = tar_body.Part(files)
    part.watch = lambda size, count: calls.append((size, count))
    b"".join(part)
    assert calls == sorted(calls)
    assert calls[-1][1] == 2
    assert calls[-1][0] >= 2 * tar_body.CHUNK


def test_the_digest_of_a_file_and_of_bytes_agree(tmp_path: Path) -> None:
    data = os.urandom(tar_body.CHUNK * 2 + 3)
    (tmp_path / "a").write_bytes(data)
    assert tar_body.digest_of(tmp_path / "a") == tar_body.digest_of(data) == md5(data)


@pytest.mark.parametrize("slow", [False, True])
def test_small_files_are_read_ahead_only_where_opening_them_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    files = [written(tmp_path, f"f{number:02}", os.urandom(700)) for number in range(60)]
    expected = {one.name: (tmp_path / one.name).read_bytes() for one in files}
    real, guard, reading, most = tar_body._read_whole, threading.Lock(), [0], [0]
    here, several, now = threading.current_thread(), threading.Event(), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])  # only reading takes time

    def read(one: tar_body.Outgoing, path: Path) -> bytes:
        with guard:
            now[0] += 0.01 if slow else 0.0001
            reading[0] += 1
            most[0] = max(most[0], reading[0])
            if reading[0] > 1:
                several.set()
        try:
            if threading.current_thread() is not here:
                several.wait(30)
            return real(one, path)
        finally:
            with guard:
                reading[0] -= 1

    monkeypatch.setattr(tar_body, "_read_whole", read)
    (tmp_path / "f40").write_bytes(b"other")
    part = tar_body.Part(files)
    body = b"".join(part)
    assert (most[0] > 1) is slow
    assert most[0] <= tar_body.AHEAD
    assert set(part.left_out) == {"f40"}
    del expected["f40"]
    assert members(body) == expected
    assert len(body) == len(part)


def test_an_attempt_that_is_broken_off_reads_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [written(tmp_path, f"f{number:03}", os.urandom(300_000)) for number in range(100)]
    real, count = tar_body._read_whole, [0]

    def read(one: tar_body.Outgoing, path: Path) -> bytes:
        count[0] += 1
        time.sleep(0.003)
        return real(one, path)

    monkeypatch.setattr(tar_body, "_read_whole", read)
    body = iter(tar_body.Part(files))
    for _ in range(4):
        next(body)
    body.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert count[0] < 60
