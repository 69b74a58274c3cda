"""Path patterns: what the rows of the Paths section mean, and where a path stops fitting them (pure).

A pattern set is a row of cells, one for each part of a path; the last cell is for the file's name. Cells are
literal text and captures (`{SubjectName}-{ID}`), `*` (one folder, any name) or `**` (one or more folders).

How a match is found, so that no name however long and no tree however deep costs more than a few passes:

- Within a part, the text between two open captures has a fixed width (literals and digit captures). Earlier
  captures take as much as they can exactly when each such block stands as far right as it can, so each block is
  fitted once, from the right; nothing is ever taken back.
- Among the parts, the cells between two `**` are fitted as far left as they can be, once each.
- Only a name that is used twice can make the first reading wrong. Then, and only then, the other readings
  are tried in order of preference, remembering what failed, with a limit on the steps.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from xnatuploader import errors
from xnatuploader.config.lines import LabelledRow

_T = TypeVar("_T")

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What may be between braces."""

MOST_STEPS = 50_000
"""Choices tried for one path when a name is used twice; beyond it the path counts as not matched."""

MOST_FOLDERS = 4096
"""Folders whose reading is remembered. A scan walks folder by folder, so the last few would do."""

_DIGIT_NAME = re.compile(r"([A-Z])\1*")
_FOLDER, _FOLDERS = "*", "**"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """A path fits: `values` holds the captured text by name, in NFC and with its own case."""

    label: str
    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class NoMatch:
    """A path fits no set: one reason for each set, in the order of the sets."""

    reasons: tuple[str, ...]
    """`Nested: 'notes.txt' does not fit '{filename}.dcm'`: for the sheet, as they quote the path."""
    rules: tuple[str, ...]
    """The same without any text of the path, for screen and log (paths hold patients' names)."""


def compile_sets(rows: Sequence[LabelledRow]) -> Matcher:
    """Compile the pattern sets, which are tried in this order.

    Raises `errors.ConfigurationError` with every problem in any of them, each with its cell.
    """
    problems: list[str] = []
    compiled: list[_Set] = []
    labels: dict[str, str] = {}
    for row in rows:
        if row.label in labels:
            problems.append(
                f"{row.cell}: the label '{row.label}' is used twice (first in {labels[row.label]}); each pattern set "
                "needs its own."
            )
        labels.setdefault(row.label, row.cell)
        if not row.values:
            problems.append(
                f"{row.cell}: '{row.label}' has no patterns; fill in the cells to its right, or clear the row."
            )
        parts = []
        for cell, text in row.values:
            try:
                parts.append(_parse(text))
            except ValueError as error:
                problems.append(f"{cell}: {error}")
        if parts:
            compiled.append(_Set(row.label, parts))
    if problems:
        raise errors.ConfigurationError(problems)
    return Matcher(compiled)


class Matcher:
    """The compiled pattern sets of one Configuration sheet."""

    def __init__(self, sets: Sequence[_Set]) -> None:
        self.sets = tuple(sets)
        self._folders: dict[str, tuple[_Readings | _Mismatch, ...]] = {}
        self.captures: tuple[str, ...] = tuple(dict.fromkeys(name for one in sets for name in one.names))
        """Every captured name, in the order in which they are first written."""

    def match(self, path: str) -> PathMatch | NoMatch:
        """Match `path` (relative, with `/`) with the sets in turn; the first that fits wins."""
        mismatches = []
        for one, read in self._each(path):
            if not isinstance(read, _Mismatch):
                return PathMatch(one.label, read)
            mismatches.append((one.label, read))
        return NoMatch(
            tuple(f"{label}: {mismatch.message}" for label, mismatch in mismatches),
            tuple(f"{label}: {mismatch.rule}" for label, mismatch in mismatches),
        )

    def explain(self, path: str) -> tuple[str, ...]:
        """Say for each set that `match` tries what it makes of `path` (for `--debug`: it quotes the path)."""
        steps = []
        for one, read in self._each(path):
            if isinstance(read, _Mismatch):
                steps.append(f"{one.label} ({one.text}) does not fit: {read.message}")
            else:
                values = ", ".join(f"{name} = {_quoted(text)}" for name, text in read.items())
                steps.append(f"{one.label} ({one.text}) fits: {values or 'nothing captured'}")
                break
        return tuple(steps)

    def _each(self, path: str) -> Iterator[tuple[_Set, dict[str, str] | _Mismatch]]:
        """Yield the sets in order with what each reads, or why it does not fit."""
        folder, _, name = normal(path).rpartition("/")
        above = self._folders.get(folder)
        if above is None:
            above = self._read_folder(folder)
        for one, read in zip(self.sets, above, strict=True):
            yield one, read if isinstance(read, _Mismatch) else one.read_file(folder, read, name)

    def _read_folder(self, folder: str) -> tuple[_Readings | _Mismatch, ...]:
        parts = folder.split("/") if folder else []
        if len(self._folders) >= MOST_FOLDERS:
            self._folders.clear()
        readings = tuple(one.read_folders(parts) for one in self.sets)
        self._folders[folder] = readings
        return readings


def digits_in(name: str) -> int:
    """Return how many digits a capture of this name (`YYYY`) takes; 0 where it takes any text."""
    return len(name) if _DIGIT_NAME.fullmatch(name) else 0


def normal(text: str) -> str:
    """Return `text` in NFC, the form in which all comparing is done: a Mac writes `ü` as two characters."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


# -- One cell ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Literal:
    text: str


@dataclass(frozen=True, slots=True)
class _Capture:
    name: str
    digits: int
    """How many digits exactly; 0 for any text of one or more characters."""


_Token = _Literal | _Capture


def _parse(text: str) -> _Part:
    """Read one cell; raises ValueError with what is wrong and what to write."""
    if not text:
        raise ValueError("the pattern is empty.")
    if text in (_FOLDER, _FOLDERS):
        return _Part(text, ())
    for sign in "/\\":
        if sign in text:
            raise ValueError(f"'{text}' contains '{sign}'; write each folder into a cell of its own.")
    tokens: list[_Token] = []
    for piece in re.findall(r"\{[^{}]*\}|[^{}]+|[{}]", text):
        if piece in ("{", "}"):
            raise ValueError(f"'{text}' has an unmatched brace; a capture is written {{Name}}.")
        tokens.append(_capture(piece[1:-1]) if piece[0] == "{" else _literal(piece, text))
    return _Part(text, tuple(tokens))


def _literal(piece: str, text: str) -> _Literal:
    if "*" in piece:
        raise ValueError(
            f"'{text}' mixes * with other text; alone in its cell, * stands for one folder with any name."
            " For a part of a name write a capture such as {Name}."
        )
    return _Literal(normal(piece))


def _capture(name: str) -> _Capture:
    if not name:
        raise ValueError("'{}' has no name; write one between the braces, such as {ID}.")
    if not NAME.fullmatch(name):
        if name.upper().startswith("DICOM"):
            raise ValueError(
                f"'{{{name}}}' cannot be read from a path; DICOM fields belong in the Mappings section."
            )
        better = re.sub(r"[^A-Za-z0-9_]", "", name)
        hint = f" Write {{{better}}}." if NAME.fullmatch(better) else ""
        raise ValueError(
            f"'{{{name}}}' is not a name; names consist of letters, digits and _, and begin with a letter.{hint}"
        )
    return _Capture(name, digits_in(name))


class _Block:
    """What is between two open captures: literals and digit captures, of fixed width, maybe nothing."""

    __slots__ = ("here", "rightmost", "width")

    def __init__(self, tokens: Sequence[_Token]) -> None:
        # IGNORECASE compares one character with one, so that a literal keeps its width (casefold would not).
        source = "".join(
            re.escape(token.text) if isinstance(token, _Literal) else f"([0-9]{{{token.digits}}})"
            for token in tokens
        )
        self.here = re.compile(source, re.IGNORECASE)
        self.rightmost = re.compile("(?s:.*)" + source, re.IGNORECASE)
        self.width = sum(len(token.text) if isinstance(token, _Literal) else token.digits for token in tokens)


class _Part:
    """One compiled cell."""

    __slots__ = ("_blocks", "_least", "names", "text", "tokens")

    def __init__(self, text: str, tokens: tuple[_Token, ...]) -> None:
        self.text = text
        self.tokens = tokens
        self.names = tuple(token.name for token in tokens if isinstance(token, _Capture))
        fixed = _split(tokens, lambda token: isinstance(token, _Capture) and not token.digits)
        self._blocks = tuple(map(_Block, fixed))
        self._least = sum(block.width for block in self._blocks) + len(fixed) - 1

    def read(self, text: str) -> tuple[str, ...] | None:
        """Return what the captures take, in the order of `names`; None where `text` does not fit, whole."""
        if not self.tokens:
            return ()
        blocks = self._blocks
        if len(text) < self._least:
            return None
        if len(blocks) == 1:
            whole = blocks[0].here.fullmatch(text)
            return whole.groups() if whole else None
        first = blocks[0].here.match(text)
        last = blocks[-1].here.match(text, len(text) - blocks[-1].width)
        if first is None or last is None:
            return None
        taken: tuple[str, ...] = last.groups()
        right, left = last.start(), first.end()
        for block in blocks[-2:0:-1]:
            found = block.rightmost.match(text, left + 1, right - 1)
            if found is None:
                return None
            taken = (*found.groups(), text[found.end() : right], *taken)
            right = found.end() - block.width
        return (*first.groups(), text[left:right], *taken)

    def mismatch(self, text: str, kind: str) -> _Mismatch:
        """Say that `text`, a `kind` of name, does not fit."""
        rule = f"does not fit {_quoted(self.text)}{self._digits_note()}"
        return _Mismatch(f"{_quoted(text)} {rule}", f"{kind} {rule}")

    def _digits_note(self) -> str:
        """Explain digit captures: nobody guesses that {D} is one digit."""
        counted = {
            token.name: token.digits for token in self.tokens if isinstance(token, _Capture) and token.digits
        }
        if not counted:
            return ""
        counts = ", ".join(
            f"{{{name}}} is exactly {many} digit{'s'[: many > 1]}" for name, many in counted.items()
        )
        hint = "; a longer name, such as {Number}, takes any text" if 1 in counted.values() else ""
        return f" ({counts}{hint})"


def _quoted(text: str) -> str:
    return f"'{text if len(text) <= 80 else text[:79] + '…'}'"


# -- One set ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mismatch:
    """Why a set does not fit: with the path's own text for the sheet, and without for the screen."""

    message: str
    rule: str


_Readings = tuple[tuple[str, str], ...]
"""Captured name and text, in the order of the path; a name used twice is here twice."""


class _Set:
    """One compiled pattern set."""

    def __init__(self, label: str, parts: Sequence[_Part]) -> None:
        self.label = label
        self.text = " | ".join(part.text for part in parts)
        self.names = tuple(name for part in parts for name in part.names)
        self._parts = tuple(parts)
        # `**` as the last cell takes the file's name and any folders left above it.
        self._open = parts[-1].text == _FOLDERS
        self._runs = _split(parts[:-1], lambda part: part.text == _FOLDERS)
        self._least = len(parts) - 1
        self._exact = len(self._runs) == 1 and not self._open
        self._repeats = len(set(self.names)) < len(self.names)

    def read_folders(self, folders: Sequence[str]) -> _Readings | _Mismatch:
        """Place the cells for folders; the file's name is another matter, so that this can be remembered."""
        count = len(folders)
        if count < self._least or (self._exact and count > self._least):
            return self._miscount(count)
        readings: _Readings = ()
        start, after = 0, sum(map(len, self._runs)) + len(self._runs) - 1
        for index, run in enumerate(self._runs):
            after -= len(run) + 1  # the parts that what comes after this run needs at least
            if index == 0:
                starts = range(0, 1)
            elif index < len(self._runs) - 1:
                starts = range(start + 1, count - after - len(run))
            elif self._open:
                starts = range(start + 1, count - len(run) + 1)
            else:
                starts = range(count - len(run), count - len(run) + 1)
            fitted = _fit(run, folders, starts)
            if isinstance(fitted, _Mismatch):
                return fitted
            start = fitted[0] + len(run)
            readings += fitted[1]
        return readings

    def read_file(self, folder: str, above: _Readings, name: str) -> dict[str, str] | _Mismatch:
        """Return all captured values of a file whose folder was read as `above`."""
        part = self._parts[-1]
        taken = part.read(name)
        if taken is None:
            return part.mismatch(name, "a file name")
        readings = (*above, *zip(part.names, taken, strict=True))
        values = dict(readings)
        if not self._repeats:
            return values
        clash = next(((key, text) for key, text in readings if values[key] != text), None)
        return values if clash is None else self._read_again(f"{folder}/{name}".lstrip("/"), clash, values)

    def _read_again(
        self, path: str, clash: tuple[str, str], values: Mapping[str, str]
    ) -> dict[str, str] | _Mismatch:
        found, steps = search(_flat(self._parts), path)
        if found is not None:
            return found
        name, text = clash
        rule = f"{{{name}}} is used several times, and the path has different text there"
        message = f"{rule} ({_quoted(text)} and {_quoted(values[name])})"
        if steps > MOST_STEPS:
            rule = message = (
                f"{{{name}}} is used several times, and there are too many ways to read this path"
            )
        return _Mismatch(message, rule)

    def _miscount(self, count: int) -> _Mismatch:
        least = "" if self._exact else "at least "
        message = f"the file is in {_folders(count)}, and the pattern is for {least}{_folders(self._least)}"
        if len(self._runs) > 1:
            message += " (** stands for one or more)"
        return _Mismatch(message, message)


def _folders(count: int) -> str:
    return "no folder" if count == 0 else "1 folder" if count == 1 else f"{count} folders"


def _split(items: Iterable[_T], between: Callable[[_T], bool]) -> list[list[_T]]:
    """Split `items` at each one that is `between` others; that one is left out."""
    runs: list[list[_T]] = [[]]
    for item in items:
        if between(item):
            runs.append([])
        else:
            runs[-1].append(item)
    return runs


def _fit(run: Sequence[_Part], folders: Sequence[str], starts: range) -> tuple[int, _Readings] | _Mismatch:
    """Put `run` at the first of `starts` where all its cells fit; else the mismatch of the start that came furthest."""
    furthest, mismatch = -1, _Mismatch("", "")
    for start in starts:
        readings: _Readings = ()
        for done, (part, folder) in enumerate(zip(run, folders[start:], strict=False)):
            taken = part.read(folder)
            if taken is None:
                if done > furthest:
                    furthest, mismatch = done, part.mismatch(folder, "a folder name")
                break
            readings += tuple(zip(part.names, taken, strict=True))
        else:
            return start, readings
    if furthest == 0 and len(starts) > 1:
        rule = f"no folder fits {_quoted(run[0].text)}{run[0]._digits_note()}"
        return _Mismatch(rule, rule)
    return mismatch


# -- Names used twice -------------------------------------------------------------------------------------


def _flat(parts: Sequence[_Part]) -> list[_Token]:
    """Return the whole set as one sequence of tokens, `*`, `**` and the `/` between parts as literals."""
    tokens: list[_Token] = []
    for index, part in enumerate(parts):
        if index:
            tokens.append(_Literal("/"))
        tokens.extend(part.tokens or (_Literal(part.text),))
    return tokens


def search(tokens: Sequence[_Token], path: str) -> tuple[dict[str, str] | None, int]:
    """Find the preferred reading of `path` in which a name has the same text wherever it is used.

    Returns the values, or None, and the steps it took; after `MOST_STEPS` it gives up. What failed is
    remembered by token, position and the bound names that still matter, so without names used twice the work
    is at most (tokens) x (length of the path) squared.
    """
    seen: Counter[str] = Counter(token.name for token in tokens if isinstance(token, _Capture))
    needed = [
        sorted({t.name for t in tokens[index:] if isinstance(t, _Capture) and seen[t.name] > 1})
        for index in range(len(tokens))
    ]
    dead: set[tuple[object, ...]] = set()
    nothing: dict[str, str] = {}
    frames = [(_ends(tokens[0], path, 0, nothing), 0, nothing)]
    steps = 0
    while frames:
        ends, position, bound = frames[-1]
        index = len(frames) - 1
        end = next(ends, None)
        if end is None:
            dead.add((index, position, *map(bound.get, needed[index])))
            frames.pop()
            continue
        steps += 1
        if steps > MOST_STEPS:
            return None, steps
        token = tokens[index]
        now = {**bound, token.name: path[position:end]} if isinstance(token, _Capture) else bound
        if index + 1 == len(tokens):
            if end == len(path):
                return now, steps
        elif (index + 1, end, *map(now.get, needed[index + 1])) not in dead:
            frames.append((_ends(tokens[index + 1], path, end, now), end, now))
    return None, steps


def _ends(token: _Token, path: str, start: int, bound: Mapping[str, str]) -> Iterator[int]:
    """Yield where `token` may end when it begins at `start`, the preferred end first."""
    slash = path.find("/", start)
    part_end = len(path) if slash < 0 else slash
    if isinstance(token, _Literal):
        yield from _literal_ends(token.text, path, start, part_end)
    elif token.name in bound:
        if path.startswith(bound[token.name], start):
            yield start + len(bound[token.name])
    elif token.digits:
        end = start + token.digits
        if re.fullmatch(f"[0-9]{{{token.digits}}}", path[start:end]):
            yield end
    else:
        yield from range(part_end, start, -1)


def _literal_ends(text: str, path: str, start: int, part_end: int) -> Iterator[int]:
    if text == _FOLDER:
        yield part_end
    elif text == _FOLDERS:
        yield from (found.start() for found in re.compile(r"/|\Z").finditer(path, start + 1))
    elif re.fullmatch(re.escape(text), path[start : start + len(text)], re.IGNORECASE):
        yield start + len(text)
