import os
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from tests.helpers import builders
from xnatuploader import paths, records
from xnatuploader.scan import find

posix = pytest.mark.skipif(os.name == "nt", reason="needs links, pipes or rights as POSIX has them")


def make(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(root, exclude=()):
    return [found.file for found in find.list_files(root, exclude)]


def errors_of(root):
    return {found.file: found.error for found in find.list_files(root) if found.error}


def test_the_example_tree_is_listed_in_its_order(tmp_path):
    builders.seed_tree(tmp_path)
    assert names(tmp_path) == list(builders.SEED_FILES)


def test_an_empty_folder_has_no_files(tmp_path):
    assert names(tmp_path) == []


def test_numbers_count_as_numbers_and_files_come_before_folders(tmp_path):
    make(tmp_path, "b10/x", "b9/x", "B9/y", "scan10.dcm", "scan9.dcm", "scan09.dcm", "a/z", "a/a/z")
    got = names(tmp_path)
    assert got == ["scan09.dcm", "scan9.dcm", "scan10.dcm", "a/z", "a/a/z", "B9/y", "b9/x", "b10/x"]
    assert got == sorted(got, key=find.order)


@hypothesis.given(st.lists(st.text(min_size=1).filter(lambda text: "\0" not in text), unique=True))
def test_the_order_of_any_paths_is_total(files):
    keys = [find.order(file) for file in files]
    assert len(set(keys)) == len(set(files))
    backwards = list(reversed(files))
    assert sorted(files, key=find.order) == sorted(backwards, key=find.order)


def test_size_and_time_are_those_of_the_file(tmp_path):
    path = make(tmp_path, "a") / "a"
    path.write_bytes(b"12345")
    os.utime(path, (0, 1_600_000_000.9))
    assert list(find.list_files(tmp_path)) == [records.FoundFile("a", 5, "2020-09-13T12:26:40Z")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1970-01-01T00:00:00Z"), (-86400, "1969-12-31T00:00:00Z"), (1e18, "")]
)
def test_times_of_every_age_are_written(seconds, text):
    assert find.modified(seconds) == text


def test_system_files_are_never_listed_and_other_hidden_files_are(tmp_path):
    make(
        tmp_path,
        ".DS_Store",
        "Thumbs.db",
        "a/THUMBS.DB",
        "desktop.ini",
        "._scan.dcm",
        "~$files.xlsx",
        "a/~$b",
    )
    make(tmp_path, ".hidden.dcm", ".folder/scan.dcm", "thumbs.db.dcm")
    assert names(tmp_path) == [".hidden.dcm", "thumbs.db.dcm", ".folder/scan.dcm"]


def test_the_workbook_its_logs_and_its_journal_are_left_out(tmp_path, monkeypatch):
    make(
        tmp_path,
        "files.xlsx",
        "files.xlsx.journal",
        "logs/one.log",
        "sub/logs/two.log",
        "sub/files.xlsx",
        "a.dcm",
    )
    monkeypatch.chdir(tmp_path)
    exclude = [Path("files.xlsx"), tmp_path / "files.xlsx.journal", tmp_path / "sub" / ".." / "logs"]
    assert names(tmp_path, exclude) == ["a.dcm", "sub/files.xlsx", "sub/logs/two.log"]
    assert names(Path(), exclude) == ["a.dcm", "sub/files.xlsx", "sub/logs/two.log"]


@posix
def test_the_workbook_is_known_again_through_a_link(tmp_path):
    make(tmp_path / "real", "files.xlsx", "a.dcm")
    (tmp_path / "link").symlink_to("real")
    assert names(tmp_path / "link", [tmp_path / "real" / "files.xlsx"]) == ["a.dcm"]


@posix
def test_links_to_folders_are_followed_once_and_real_places_go_first(tmp_path):
    make(tmp_path / "outside", "scan.dcm", "deeper/scan.dcm")
    make(tmp_path / "data", "b/scan.dcm")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "data" / "b")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "d").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "e").symlink_to(tmp_path / "outside" / "deeper")
    got = names(tmp_path / "data")
    assert got == ["b/scan.dcm", "c/scan.dcm", "c/deeper/scan.dcm"]


@posix
def test_loops_of_links_end(tmp_path):
    make(tmp_path, "a/b/scan.dcm")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    got = list(find.list_files(tmp_path))
    assert [found.file for found in got if not found.error] == ["a/b/scan.dcm"]
    assert {found.file for found in got if found.error} == {"a/self", "one", "two"}


@posix
def test_a_loop_outside_the_root_is_walked_once(tmp_path):
    make(tmp_path, "data/one.dcm", "other/two.dcm")
    (tmp_path / "data" / "all").symlink_to(tmp_path)
    assert names(tmp_path / "data") == ["one.dcm", "all/other/two.dcm"]


@posix
def test_links_to_files_are_files(tmp_path):
    make(tmp_path / "outside", "scan.dcm")
    make(tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.dcm").symlink_to(tmp_path / "outside" / "scan.dcm")
    (found,) = find.list_files(tmp_path / "data")
    assert (found.file, found.size, found.error) == ("link.dcm", 1, "")


@posix
def test_dangling_links_and_pipes_are_listed_with_their_error(tmp_path):
    make(tmp_path, "scan.dcm")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    got = errors_of(tmp_path)
    assert set(got) == {"dangling", "pipe"}
    assert "broken link" in got["dangling"]
    assert "device" in got["pipe"]


def test_a_folder_without_right_is_one_entry_and_the_others_are_listed(tmp_path, monkeypatch):
    make(tmp_path, "a/scan.dcm", "closed/scan.dcm", "z/scan.dcm")
    right = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return right(path)

    monkeypatch.setattr(find.os, "scandir", scandir)
    assert names(tmp_path) == ["a/scan.dcm", "closed", "z/scan.dcm"]
    assert "no permission" in errors_of(tmp_path)["closed"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may open everything")
def test_a_folder_really_without_right_is_one_entry(tmp_path):
    make(tmp_path, "closed/scan.dcm")
    (tmp_path / "closed").chmod(0)
    try:
        assert set(errors_of(tmp_path)) == {"closed"}
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_root_that_is_gone_is_said(tmp_path):
    assert set(errors_of(tmp_path / "gone")) == {"."}


def test_a_folder_that_vanishes_while_it_is_listed_does_not_end_the_listing(tmp_path, monkeypatch):
    make(tmp_path, "a/scan.dcm", "b/scan.dcm")
    right = os.scandir

    def scandir(path):
        if Path(path).name == "a":
            raise FileNotFoundError(2, "gone")
        return right(path)

    monkeypatch.setattr(find.os, "scandir", scandir)
    assert names(tmp_path) == ["a", "b/scan.dcm"]


def test_a_file_that_vanishes_before_it_is_looked_at_is_left_to_reading(tmp_path):
    class Gone:
        name = "scan.dcm"

        def is_symlink(self):
            return False

        def stat(self, follow_symlinks=True):
            raise FileNotFoundError(2, "gone")

    assert find._look(Gone(), "scan.dcm") == ("file", records.FoundFile("scan.dcm", 0, ""))


def test_windows_junctions_count_as_links():
    class Junction:
        name = "j"

        def is_symlink(self):
            return False

        def stat(self, follow_symlinks=True):
            class Status:
                st_mode, st_size, st_mtime, st_reparse_tag = 0o040777, 0, 0.0, 0xA0000003

            return Status()

    assert find._look(Junction(), "j") == ("link", None)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes exist on Linux")
def test_undecodable_and_odd_names_survive_and_open_again(tmp_path):
    raw = [
        b"M\xfcller.dcm",
        b"new\nline.dcm",
        b"tab\t\x01.dcm",
        "Ünïcode.dcm".encode(),
        b"back\\slash.dcm",
        b" .dcm",
    ]
    for name in raw:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    got = names(tmp_path)
    assert sorted(os.fsencode(name) for name in got) == sorted(raw)
    assert all((tmp_path / name).read_bytes() == b"x" for name in got)


def test_a_deep_tree_is_walked_without_recursion(tmp_path):
    folder = tmp_path
    for _ in range(300):
        folder = folder / "d"
    folder.mkdir(parents=True)
    (folder / "scan.dcm").write_bytes(b"x")
    assert names(tmp_path) == ["d/" * 300 + "scan.dcm"]


@pytest.mark.parametrize("windows", [True, False])
def test_long_paths_get_their_prefix_on_windows_only(windows, monkeypatch):
    monkeypatch.setattr(paths, "is_windows", lambda: windows)
    long = "C:\\" + "folder\\" * 40 + "scan.dcm"
    share = "\\\\server\\share\\" + "folder\\" * 40 + "scan.dcm"
    opens = {
        long: "\\\\?\\" + long,
        long.replace("\\", "/"): "\\\\?\\" + long,
        share: "\\\\?\\UNC\\" + share[2:],
        "C:\\short\\scan.dcm": "C:\\short\\scan.dcm",
        "\\\\?\\" + long: "\\\\?\\" + long,
    }
    assert {path: paths.long_path(path) for path in opens} == (
        opens if windows else {path: path for path in opens}
    )
