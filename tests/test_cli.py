"""The command line: options, help, exit codes, `--json`, logs and what is imported, without a server."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import BOOK, ROOT, Ran, Runner, variables
from xnatuploader import errors, paths, records
from xnatuploader.commands import options, scan
from xnatuploader.config import sheet
from xnatuploader.console import report

HEAVY = {
    "aiohttp", "openpyxl", "pydicom", "requests", "tqdm", "truststore", "urllib3", "xnat", "xnatutils", "asyncio",
    "multiprocessing", "numpy",
}  # fmt: skip


def parsed(*words: str) -> object:
    return options.parse(words)


# ---- help


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom xnatuploader import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    # Without coverage's variables: the hook that they start imports libraries of its own.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=alone, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.partition("LOADED")[2].split()}
    assert "xnatuploader" in loaded
    assert loaded & HEAVY == set()


def test_no_operation_gives_a_short_help_and_2(run: Runner) -> None:
    ran = run()
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) < 15
    for name in options.OPERATIONS:
        assert f"xnatuploader {name}" in ran.err


@pytest.mark.parametrize("operation", [*options.OPERATIONS])
def test_help_of_an_operation_has_an_example_that_the_program_accepts(operation: str, run: Runner) -> None:
    ran = run("help", operation)
    assert ran.code == 0
    examples = re.findall(r"^ +xnatuploader (.*)$", ran.out, re.MULTILINE)
    assert examples
    assert all(example.split()[0] == operation for example in examples)
    if operation != "sandbox":  # its faults are quoted as a shell wants them
        for example in examples:
            parsed(*example.split())
    assert ran.out == run_help_option(run, operation)


def run_help_option(run: Runner, operation: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "xnatuploader", operation, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_help_shows_an_operation_its_own_options_only(run: Runner) -> None:
    assert "--unmatched" in run("help", "scan").out
    assert "--import-handler" not in run("help", "scan").out
    assert "--import-handler" in run("help", "upload").out
    assert "scan:" not in run("help", "upload").out


def test_help_for_something_that_is_no_operation_is_2(run: Runner) -> None:
    assert run("help", "nonsense").code == 2


def table_in(text: str) -> dict[int, str]:
    """Read `| 3 | login refused ... |` rows."""
    rows = re.findall(r"^\|\s*(\d+)\s*\|\s*(.*?)\s*\|$", text, re.MULTILINE)
    return {int(code): meaning for code, meaning in rows}


@pytest.mark.parametrize("page", ["uploading.md", "scheduling.md"])
def test_the_exit_codes_in_help_are_those_of_the_docs(page: str, run: Runner) -> None:
    assert table_in((ROOT / "docs" / page).read_text(encoding="utf-8")) == dict(errors.EXIT_CODES)
    shown = " ".join(run("help").out.split())
    for code, meaning in errors.EXIT_CODES.items():
        assert f"{code} {meaning}" in shown


def test_every_option_may_be_given_before_the_operation() -> None:
    assert options.parse(["--port", "8080", "sandbox"]).port == 8080
    assert options.parse(["--jobs", "2", "scan"]).jobs == 2


def test_every_option_is_in_the_docs() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    every = (*options.OPTIONS, *options.SANDBOX_OPTIONS)
    lacking = [option.flag for option in every if not re.search(rf"{option.flag}\b", pages)]
    assert lacking == []


def test_every_operation_is_in_the_docs() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert [name for name in options.OPERATIONS if not re.search(rf"(xnatuploader |`){name}\b", pages)] == []


def test_every_row_of_the_configuration_and_every_column_of_files_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "spreadsheet.md").read_text(encoding="utf-8")
    columns = [heading for heading in records.COLUMNS if not heading.startswith("DICOM:")]
    names = (*(setting.label for setting in sheet.SETTINGS), *columns)
    assert [name for name in names if not re.search(rf"^\|.*`{name}`", page, re.MULTILINE)] == []


def test_the_keys_of_json_are_in_the_docs() -> None:
    page = (ROOT / "docs" / "uploading.md").read_text(encoding="utf-8")
    keys = json.loads(report.as_json("upload", BOOK, 1.0, report.Result()))
    assert [key for key in keys if f"| `{key}` |" not in page] == []


# ---- parsing


def test_options_stand_before_or_after_the_operation(here: Path, run: Runner) -> None:
    before = parsed("--spreadsheet", "a.xlsx", "--jobs", "2", "upload", "--test")
    after = parsed("upload", "--test", "--jobs", "2", "--spreadsheet", "a.xlsx")
    assert vars(before) == vars(after)  # type: ignore[call-overload]
    assert run("--spreadsheet", BOOK, "init").code == 0
    assert Path(BOOK).exists()


def test_an_option_after_the_operation_takes_precedence_over_the_same_one_before() -> None:
    assert parsed("--jobs", "2", "upload", "--jobs", "3").jobs == 3  # type: ignore[attr-defined]


def test_options_that_mean_nothing_to_an_operation_are_accepted() -> None:
    for operation in options.OPERATIONS:
        asked = parsed("--overwrite", operation, "--unmatched", "--anonymize")
        assert asked.operation == operation  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scan", "--loglevel", "chatty"], "chatty"),
        (["upload", "--until", "25:00"], "25:00"),
        (["upload", "--max-duration", "eight"], "8:00"),
        (["upload", "--wait", "90"], "hours:minutes"),
        (["upload", "--jobs", "0"], "1 to 64"),
        (["upload", "--jobs", "-3"], "1 to 64"),
        (["nonsense"], "There is no operation 'nonsense'; the operations are init, scan, upload"),
        (["help", "nonsense"], "There is no operation 'nonsense'; the operations are"),
        (
            ["study.xlsx"],
            "There is no operation 'study.xlsx'. Did you mean: scan --spreadsheet study.xlsx ? See",
        ),
        ([""], "There is no operation ''; the operations are init, scan, upload"),
        (["it's"], "There is no operation 'it's'; the operations are init, scan, upload"),
        (["--loglevel", "scan"], "Option --loglevel: invalid choice: 'scan'"),
        (["upload", "--wait"], "Option --wait: a value is missing. See `xnatuploader help upload`"),
        (
            ["--spreadhseet", BOOK, "scan"],
            "There is no option --spreadhseet; did you mean --spreadsheet? See",
        ),
        (["uplaod"], "There is no operation 'uplaod'; did you mean upload? See"),
        (
            ["upload", "--dirr", "x"],
            "There is no option --dirr; did you mean --dir? See `xnatuploader help upload`",
        ),
        (["upload", "--dri", "x"], "There is no option --dri; did you mean --dir? See"),
        (["upload", "--latncy", "1"], "There is no option --latncy. See"),
        (["help", "foo"], "There is no operation 'foo'; the operations are init, scan, upload, check"),
        (["upload", "--over-write"], "There is no option --over-write; did you mean --overwrite? See"),
        (["upload", "--port", "1"], "There is no option --port"),
        (["sandbox", "--prot", "1"], "There is no option --prot; did you mean --port? See"),
        (["--port", "8080", "upload"], "There is no option --port. See `xnatuploader help upload`"),
        (["scan", "stray"], "stray"),
        (
            ["scan", "study.xlsx"],
            "Unexpected argument 'study.xlsx'. Did you mean: --spreadsheet study.xlsx ? See",
        ),
        (
            ["scan", "my", "study.xlsx"],
            "'my study.xlsx'. Did you mean: --spreadsheet \"my study.xlsx\" ? See",
        ),
        (["--refresh-catalog", "upload"], "after the operation"),
        (
            ["upload", "--refresh-catalog", "append,all"],
            "'all' is none of checksum,delete,append,populateStats",
        ),
        (["upload", "--refresh-catalog", ""], "'' is none of"),
        (["upload", "--import-handler", "zip"], "DICOM-zip"),
    ],
)
def test_what_makes_no_sense_is_2_and_one_message(
    words: list[str], said: str, here: Path, run: Runner
) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert "help" in ran.err
    assert list(here.iterdir()) == [], "nothing is made, not even a log"


def test_the_words_of_a_catalog_refresh_are_read_in_any_case_and_stand_for_all_without_a_value() -> None:
    words = parsed("upload", "--refresh-catalog", "append, populatestats").refresh_catalog  # type: ignore[attr-defined]
    assert words == ("append", "populateStats")
    assert parsed("upload", "--refresh-catalog").refresh_catalog == records.REFRESH_WORDS  # type: ignore[attr-defined]
    assert parsed("upload").refresh_catalog == ()  # type: ignore[attr-defined]


def test_a_level_may_be_written_in_capitals_and_debug_implies_it() -> None:
    assert parsed("scan", "--loglevel", "INFO").loglevel == "info"  # type: ignore[attr-defined]
    assert parsed("scan", "--debug", "--loglevel", "error").loglevel == "debug"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ["--password", "S3cret!"],
        ["--password=S3cret!"],
        ["--pw", "S3cret!"],
        ["-p", "S3cret!"],
        ["-pS3cret!"],
        ["--password=My S3cret!"],
        ["-pMy S3cret!"],
        ["--password", "--S3cret!"],
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(
    words: list[str], here: Path, run: Runner
) -> None:
    for around in (["upload", *words], [*words, "upload"]):
        ran = run(*around, "--json")
        assert ran.code == 2
        assert "S3cret" not in ran.err + ran.out
        assert "XNAT_PASS" in ran.err
    for around in (
        ["upload", "--dir", "sandbox", "--user", "ann:S3cret!"],
        ["--dir", "sandbox", "--user", "ann:S3cret!", "upload"],
    ):
        ran = run(*around)
        assert ran.code == 2
        assert "S3cret" not in ran.err


@pytest.mark.parametrize("words", [["init"], ["init", "--force"], ["scan"], ["upload"]])
def test_a_command_that_a_message_proposes_can_be_typed_though_the_name_has_a_blank(
    words: list[str], here: Path, run: Runner
) -> None:
    said = [run(*words, "--spreadsheet", "my study.xlsx"), run("init", "--spreadsheet", "my study.xls")]
    commands = re.findall(r"--spreadsheet (.+)", "\n".join(ran.out + ran.err for ran in said))
    assert len(commands) == 2
    assert all(command.startswith('"my study.xlsx"') for command in commands)


@pytest.mark.parametrize("folder", ["-a folder", "-3"])
def test_a_value_may_begin_with_a_dash_where_it_is_no_option(folder: str) -> None:
    assert parsed("scan", "--dir", folder).dir == folder  # type: ignore[attr-defined]
    assert parsed("--project", "upload", "sandbox", "--port", "1").port == 1  # type: ignore[attr-defined]


def test_a_login_in_the_server_option_reaches_neither_screen_nor_log(here: Path, run: Runner) -> None:
    run("init", "--spreadsheet", BOOK)
    address = "https://ann:S3cret!@xnat.example.org"
    for more in ([], ["--test"], ["--debug"]):
        ran = run("upload", "--spreadsheet", BOOK, "--server", address, "--project", "P", *more)
        assert "S3cret" not in ran.out + ran.err
    run("check", "--spreadsheet", BOOK, "--server", address, "--project", "P")
    ran = run("upload", "--spreadsheet", BOOK, "--import-handler", "SI", "--dest", address)
    assert "S3cret" not in ran.out + ran.err
    logs = "".join(path.read_text(encoding="utf-8") for path in Path("logs").iterdir())
    assert "***@xnat.example.org" in logs
    assert "S3cret" not in logs


# ---- how a run ends


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch, here: Path, run: Runner) -> object:
    """Return a function that runs a scan which ends by raising this."""

    def ended(error: BaseException, *words: str) -> Ran:
        def raising(args: object) -> report.Result:
            raise error

        monkeypatch.setattr(scan, "run", raising)
        return run("scan", *words)

    return ended


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.SpreadsheetError("x"), 2),
        (errors.WorkbookInUse("x"), 2),
        (errors.LoginRefused("x"), 3),
        (errors.ServerUnreachable("x"), 4),
        (errors.ProjectRefused("x"), 5),
        (errors.SpreadsheetLocked("x"), 6),
        (KeyboardInterrupt(), 130),
        (errors.InternalError("x"), 1),
    ],
)
def test_each_error_has_its_code(error: BaseException, code: int, ending: Runner) -> None:
    assert ending(error).code == code
    assert code in errors.EXIT_CODES


def test_an_error_is_json_where_that_was_asked_for(ending: Runner) -> None:
    ran = ending(errors.ConfigurationError(["Configuration C4: one", "Configuration C5: two"]), "--json")
    said = json.loads(ran.out)
    assert (said["command"], said["exit_code"]) == ("scan", 2)
    assert said["problems"] == ["Configuration C4: one", "Configuration C5: two"]
    assert ran.err.count("xnatuploader: Configuration C") == 2


def test_a_usage_problem_is_json_too(here: Path, run: Runner) -> None:
    ran = run("upload", "--until", "nonsense", "--json")
    assert json.loads(ran.out)["exit_code"] == 2


def test_a_fault_of_the_program_is_one_line_without_the_path_that_it_names(ending: Runner) -> None:
    fault = PermissionError(13, "Permission denied", "/data/Doe^John-0001/scan.dcm")
    ran = ending(fault)
    assert ran.code == 1
    assert "Permission denied" in ran.err
    assert "Traceback" not in ran.err
    (log,) = Path("logs").iterdir()
    assert "Doe" not in ran.err + ran.out + log.read_text(encoding="utf-8")


def test_a_traceback_is_shown_with_debug_only(ending: Runner) -> None:
    assert "Traceback" not in ending(errors.ServerUnreachable("away"), "--loglevel", "debug").err
    ran = ending(KeyError("what"), "--debug")
    assert "Traceback" in ran.err
    assert "KeyError" in ran.err
    newest = max(Path("logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert "Traceback" in newest.read_text(encoding="utf-8")


def test_a_closed_pipe_behind_the_output_is_no_error(here: Path) -> None:
    """As `xnatuploader help | head -1` does: no traceback."""
    for words in (["help"], ["init", "--spreadsheet", BOOK]):
        with subprocess.Popen(
            [sys.executable, "-m", "xnatuploader", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables(), cwd=here,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            said = process.stderr.read().decode()
        assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="closing descriptors by a shell is a POSIX matter")
def test_a_run_without_any_standard_stream_works(here: Path) -> None:
    """As a service starts it, or `pythonw`."""
    command = f"exec '{sys.executable}' -m xnatuploader init --spreadsheet {BOOK} <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], env=variables(), cwd=here, check=False)
    assert done.returncode == 0
    assert Path(BOOK).read_bytes()[:2] == b"PK"


def test_there_are_no_colour_codes_anywhere(here: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for words in (["help"], ["help", "upload"], ["scan"], ["init", "--spreadsheet", BOOK], ["check"]):
        ran = run(*words)
        assert "\x1b" not in ran.out + ran.err


def test_a_console_that_lacks_a_character_shows_it_escaped(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xnatuploader", "init", "--spreadsheet", "Müller_日本.xlsx"],
        capture_output=True, cwd=here, env=variables(PYTHONIOENCODING="cp1252", PYTHONUTF8="0"), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\\u65e5" in done.stdout


# ---- the log


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def test_each_run_leaves_one_log_with_times_levels_and_what_was_asked(seed_tree: Path, run: Runner) -> None:
    run("init", "--spreadsheet", BOOK)
    assert not Path("logs").exists(), "init leaves no log"
    run("scan", "--spreadsheet", BOOK, "--dir", seed_tree, "--unmatched")
    (log,) = logs(Path("logs"))
    assert re.fullmatch(r"xnatuploader-\d{8}-\d{6}-\d+\.log", log.name)
    text = log.read_text(encoding="utf-8")
    first, last = text.splitlines()[0], text.splitlines()[-1]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", first)
    assert '"unmatched": "True"' in first
    assert BOOK in first
    assert "exit code 0" in last
    assert "14 not tried" in text


def test_the_log_folder_may_be_chosen(seed_tree: Path, here: Path, run: Runner) -> None:
    run("init", "--spreadsheet", BOOK)
    run("scan", "--spreadsheet", BOOK, "--dir", seed_tree, "--logdir", here / "my" / "logs")
    assert len(logs(here / "my" / "logs")) == 1
    assert not Path("logs").exists()


def test_a_log_folder_that_cannot_be_written_is_said_and_the_log_is_in_the_state_folder(
    seed_tree: Path, here: Path, run: Runner
) -> None:
    run("init", "--spreadsheet", BOOK)
    (here / "occupied").write_text("no folder")
    ran = run("scan", "--spreadsheet", BOOK, "--dir", seed_tree, "--logdir", here / "occupied")
    assert ran.code == 0
    assert "occupied" in ran.err
    assert str(paths.state_folder()) in ran.err
    assert len(logs(paths.state_folder() / "logs")) == 1


def test_a_workbook_in_a_folder_that_is_not_there_makes_no_folder(here: Path, run: Runner) -> None:
    ran = run("scan", "--spreadsheet", here / "nowhere" / BOOK)
    assert ran.code == 2
    assert "nowhere" in ran.err
    assert not (here / "nowhere").exists()


def test_a_log_that_cannot_be_written_any_more_is_said_once_without_its_messages(
    here: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging.FileHandler, "flush", full)
    ran = run("scan", "--spreadsheet", BOOK)
    assert ran.err.count("No space left on device") == 1
    assert "Logging error" not in ran.err


def test_a_failed_run_names_its_log(here: Path, run: Runner) -> None:
    ran = run("scan", "--spreadsheet", BOOK)
    assert ran.code == 2
    (log,) = logs(Path("logs"))
    assert log.name in ran.err
    assert BOOK in log.read_text(encoding="utf-8")


def test_each_run_removes_its_log_handlers(here: Path, run: Runner) -> None:
    run("scan", "--spreadsheet", BOOK)
    before = len(logging.getLogger("xnatuploader").handlers), len(logging.getLogger().handlers)
    run("scan", "--spreadsheet", BOOK)
    assert (len(logging.getLogger("xnatuploader").handlers), len(logging.getLogger().handlers)) == before


# ---- --debug


def test_debug_scans_ten_files_and_shows_every_step_and_leaves_other_rows_alone(
    seed_tree: Path, run: Runner
) -> None:
    run("init", "--spreadsheet", BOOK)
    run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    ran = run("scan", "--spreadsheet", BOOK, "--dir", seed_tree, "--debug")
    assert ran.code == 0
    assert "10 files in" in ran.out
    assert "filename = 'scan0000'" in ran.err
    from xnatuploader.workbook import book

    assert len(list(book.Book.open(Path(BOOK)).rows())) == 14


def test_all_commands_say_what_they_do() -> None:
    for name, operation in options.OPERATIONS.items():
        assert operation.summary[0].islower()
        assert operation.description.endswith(".")
        assert operation.summary in options.short_help()
        assert callable(importlib.import_module(f"xnatuploader.commands.{name}").run)
