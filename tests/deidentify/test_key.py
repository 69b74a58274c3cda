"""The key file, and what is made from the key."""

import concurrent.futures
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from xnatuploader import errors
from xnatuploader.deidentify import key as key_room
from xnatuploader.deidentify.cleaner import Cleaner
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy

KEY = Key(bytes(range(32)))


def test_the_key_is_made_on_first_use_and_stays(tmp_path):
    folder = tmp_path / "config" / "xnatuploader"

    first = Key.load(folder)
    second = Key.load(folder)

    assert first == second
    assert len(first.secret) == 32
    assert Key.load(tmp_path / "other") != first
    assert [path.name for path in folder.iterdir()] == ["deidentify.key"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes; the user's profile is private there")
def test_only_its_owner_can_read_the_key(tmp_path):
    before = os.umask(0)
    try:
        Key.load(tmp_path)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "deidentify.key").stat().st_mode) == 0o600


def test_the_default_folder_is_the_users_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))

    Key.load()

    assert (tmp_path / "xnatuploader" / "deidentify.key").is_file()


@pytest.mark.parametrize(
    "spoil",
    [lambda text: "", lambda text: text[:-10], lambda text: text.replace("1:", "2:"), lambda text: "\xff"],
)
def test_a_damaged_key_is_an_error_and_is_never_replaced(tmp_path, spoil):
    Key.load(tmp_path)
    path = tmp_path / "deidentify.key"
    spoiled = spoil(path.read_text()).encode("latin-1")
    path.write_bytes(spoiled)

    with pytest.raises(errors.KeyUnusable, match=r"[Pp]ut back your copy") as caught:
        Key.load(tmp_path)

    assert str(path) in str(caught.value)
    assert path.read_bytes() == spoiled


def test_line_ends_of_windows_do_not_damage_a_key(tmp_path):
    first = Key.load(tmp_path)
    path = tmp_path / "deidentify.key"
    path.write_bytes(b"\r\n".join([*path.read_bytes().splitlines(), b""]))

    assert Key.load(tmp_path) == first


def test_a_key_that_cannot_be_read_or_made_is_an_error(tmp_path):
    (tmp_path / "deidentify.key").mkdir()
    with pytest.raises(errors.KeyUnusable, match="cannot be read or made"):
        Key.load(tmp_path)

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.KeyUnusable, match="cannot be read or made"):
        Key.load(tmp_path / "file" / "folder")


@pytest.mark.parametrize("links", [True, False])
def test_processes_that_start_together_agree_on_one_key(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
        assert Key.load(tmp_path) == Key.load(tmp_path)
        return
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: Key.load(tmp_path).secret, range(64)))

    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["deidentify.key"]


def test_the_one_who_comes_second_takes_the_first_ones_key(tmp_path, monkeypatch):
    first = Key.load(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda _: False)

    assert Key.load(tmp_path) == first


def test_the_secret_shows_in_no_text_form():
    shown = f"{KEY} {KEY!r} {[KEY]} {Cleaner(Policy(), KEY)!r}"

    assert KEY.secret.hex() not in shown
    assert repr(KEY.secret) not in shown
    assert re.fullmatch(r"[0-9a-f]{8}", KEY.fingerprint)
    assert KEY.fingerprint in shown


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        Key(b"short")


def test_uids_are_valid_different_and_the_same_in_another_process():
    uids = {KEY.uid(f"1.2.3.{number}") for number in range(500)}

    assert len(uids) == 500
    assert all(re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid) for uid in uids)
    code = (
        "from xnatuploader.deidentify.key import Key; k = Key(bytes(range(32)));"
        "print(k.uid('1.2.3.4'), k.days('S1'), k.fingerprint)"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert there.stdout.split() == [KEY.uid("1.2.3.4"), str(KEY.days("S1")), KEY.fingerprint]


def test_the_promise_to_earlier_batches():
    # Written down once: if these change, patients sent before get new UIDs and new dates.
    assert KEY.uid("1.2.3.4") == "2.25.157910775163532537907709671638607495716"
    assert KEY.days("S1") == -3277


def test_padding_does_not_matter_and_standard_uids_stay():
    assert KEY.uid("1.2.3\0") == KEY.uid(" 1.2.3 ") == KEY.uid("1.2.3")
    assert KEY.uid("1.2.840.10008.1.4.1.1") == "1.2.840.10008.1.4.1.1"
    assert KEY.uid("1.2.840.100080.1") != "1.2.840.100080.1"
    assert KEY.uid("") == ""


def test_another_key_gives_other_uids_and_shifts():
    other = Key(bytes(32))

    assert other.uid("1.2.3") != KEY.uid("1.2.3")
    assert [other.days(f"S{n}") for n in range(5)] != [KEY.days(f"S{n}") for n in range(5)]


def test_shifts_go_a_month_to_ten_years_back_and_differ_between_subjects():
    days = [KEY.days(f"S{number}") for number in range(2000)]

    assert min(days) >= -3650
    assert max(days) <= -30
    assert len(set(days)) > 1000
    assert KEY.days("M\u00fcller") == KEY.days("Mu\u0308ller")


def test_a_key_goes_to_other_processes():
    assert pickle.loads(pickle.dumps(KEY)) == KEY


def test_a_uid_and_a_subject_of_the_same_text_share_no_hash():
    assert KEY._hash("uid", "1") != KEY._hash("days", "1")
    assert key_room.FILE_NAME == "deidentify.key"
