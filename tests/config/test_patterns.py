"""The pattern language: what matches, what is captured, what is said, and that it stays cheap."""

import itertools
import pickle
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnatuploader import errors
from xnatuploader.config import patterns
from xnatuploader.config.lines import LabelledRow


def pattern_set(label, *parts):
    values = tuple((f"Configuration {chr(ord('C') + at)}5", part) for at, part in enumerate(parts))
    return LabelledRow(label, "Configuration B5", values)


def matcher(*parts):
    return patterns.compile_sets([pattern_set("Set", *parts)])


def values(parts, path):
    """The captured values of the one set `parts`, None where it does not fit."""
    result = matcher(*parts).match(path)
    return result.values if isinstance(result, patterns.PathMatch) else None


def reason(parts, path):
    result = matcher(*parts).match(path)
    assert isinstance(result, patterns.NoMatch)
    return result.reasons[0]


def problems(*sets):
    with pytest.raises(errors.ConfigurationError) as caught:
        patterns.compile_sets(sets)
    return caught.value.problems


NESTED = ("{SubjectName}-{ID}", "**", "{Directory}", "{filename}.dcm")


class TestOneName:
    def test_a_cell_matches_the_whole_part(self):
        assert values(("{filename}.dcm",), "a.dcm") == {"filename": "a"}
        assert values(("{filename}.dcm",), "a.dcm.bak") is None
        assert values(("SUB-{ID}",), "SUB-7") == {"ID": "7"}
        assert values(("SUB-{ID}",), "PILOT-7") is None
        assert values(("SUB-{ID}",), "xSUB-7") is None

    def test_a_cell_without_captures_matches_only_its_text(self):
        assert values(("DICOM", "{f}"), "DICOM/a") == {"f": "a"}
        assert values(("DICOM", "{f}"), "NOT_FOR_UPLOAD/a") is None

    def test_a_capture_takes_at_least_one_character(self):
        assert values(("{ID}-{n}",), "-1") is None
        assert values(("{ID}-{n}",), "1-") is None
        assert values(("{ID}-{n}",), "-12") is None
        assert values(("{ID}-{n}",), "12-") is None
        assert values(("{filename}.dcm",), ".dcm") is None

    def test_earlier_captures_take_as_much_as_they_can(self):
        assert values(("{a}-{b}",), "x-y-z") == {"a": "x-y", "b": "z"}
        assert values(("{a}{b}",), "xyz") == {"a": "xy", "b": "z"}
        assert values(("{a}-{b}-{c}",), "1-2-3-4-5") == {"a": "1-2-3", "b": "4", "c": "5"}
        assert values(("{a}-{b}-",), "1--2--") == {"a": "1-", "b": "2-"}

    @pytest.mark.parametrize(
        ("cell", "name", "expected"),
        [
            ("{YYYY}", "2020", {"YYYY": "2020"}),
            ("{YYYY}", "2020a", None),
            ("{YYYY}", "202", None),
            ("{YYYY}", "20201", None),
            ("{YYYY}", "٢٠٢٠", None),
            ("{YYYY}{MM}{DD}", "20200312", {"YYYY": "2020", "MM": "03", "DD": "12"}),
            ("{YYYY}{MM}{DD}", "20200312999", None),
            ("{II}-{x}", "07-b", {"II": "07", "x": "b"}),
            ("{D}", "7", {"D": "7"}),
            ("{D}", "x", None),
            ("{d}", "x", {"d": "x"}),
            ("{ID}", "x", {"ID": "x"}),
            ("{yyyy}", "x", {"yyyy": "x"}),
            ("{A_A}", "x", {"A_A": "x"}),
            ("{x}_{II}_{y}", "1_22_33_4", {"x": "1_22", "II": "33", "y": "4"}),
            ("{x}{D}", "a12", {"x": "a1", "D": "2"}),
        ],
    )
    def test_one_capital_letter_repeated_is_that_many_digits(self, cell, name, expected):
        assert values((cell,), name) == expected

    def test_literal_text_compares_without_case_and_captures_keep_theirs(self):
        assert values(("sub-{ID}.dcm",), "SUB-Ab.DCM") == {"ID": "Ab"}
        assert values(("ÜBER-{x}",), "über-Ä") == {"x": "Ä"}

    def test_characters_that_change_length_with_case_do_not_shift_captures(self):
        assert values(("{x}ß{y}",), "İİßa") == {"x": "İİ", "y": "a"}
        assert values(("ß{y}",), "SSa") is None

    def test_decomposed_and_composed_names_are_the_same(self):
        composed, decomposed = "Müller", unicodedata.normalize("NFD", "Müller")
        assert composed != decomposed
        assert values((decomposed + "-{ID}",), composed + "-1") == {"ID": "1"}
        assert values((composed + "-{ID}",), decomposed + "-1") == {"ID": "1"}
        assert values(("{n}",), decomposed) == {"n": composed}

    def test_signs_of_regular_expressions_are_text(self):
        assert values(("a.b(c)[d]+{x}$",), "a.b(c)[d]+1$") == {"x": "1"}
        assert values(("a.b{x}",), "aXb1") is None

    def test_line_ends_and_undecodable_bytes_are_characters(self):
        assert values(("{x}.dcm",), "a\nb.dcm") == {"x": "a\nb"}
        assert values(("x",), "x\n") is None
        assert values(("{x}",), "\udcff") == {"x": "\udcff"}


class TestFolders:
    def test_the_example_of_the_documentation(self):
        assert values(NESTED, "Doe^John-0001/20200312/Chest CT/scan0000.dcm") == {
            "SubjectName": "Doe^John",
            "ID": "0001",
            "Directory": "Chest CT",
            "filename": "scan0000",
        }

    def test_one_star_is_one_folder(self):
        assert values(("*", "{f}"), "x/a") == {"f": "a"}
        assert values(("*", "{f}"), "a") is None
        assert values(("*", "{f}"), "x/y/a") is None

    def test_two_stars_are_one_or_more_folders(self):
        assert values(("{s}", "**", "{f}"), "s/1/2/3/a") == {"s": "s", "f": "a"}
        assert values(("{s}", "**", "{f}"), "s/1/a") == {"s": "s", "f": "a"}
        assert values(("{s}", "**", "{f}"), "s/a") is None

    def test_several_two_stars_take_as_few_folders_as_they_can(self):
        parts = ("**", "{a}", "**", "{f}")
        assert values(parts, "1/2/3/4/f") == {"a": "2", "f": "f"}
        assert values(("**", "x{a}", "**", "y{b}", "{f}"), "x1/x2/y/x3/0/y4/f") == {
            "a": "2",
            "b": "4",
            "f": "f",
        }
        assert values(("**", "**", "{f}"), "1/f") is None
        assert values(("**", "**", "{f}"), "1/2/f") == {"f": "f"}

    def test_a_middle_piece_leaves_room_for_what_follows(self):
        assert values(("**", "a", "**", "b", "{f}"), "1/a/a/b/f") == {"f": "f"}
        assert values(("**", "a", "**", "b", "{f}"), "1/2/a/b/f") is None

    def test_stars_may_stand_last_and_alone(self):
        assert values(("{s}", "*"), "s/a.dcm") == {"s": "s"}
        assert values(("{s}", "**"), "s/1/2/a.dcm") == {"s": "s"}
        assert values(("{s}", "**"), "s/a.dcm") == {"s": "s"}
        assert values(("{s}", "**"), "s") is None
        assert values(("**", "x", "**"), "1/x/a") == {}
        assert values(("**", "x", "**"), "1/2/x") is None
        assert values(("**",), "a") == {}
        assert values(("*",), "a") == {}

    def test_the_first_set_that_fits_wins(self):
        both = patterns.compile_sets([pattern_set("One", "{a}.dcm"), pattern_set("Two", "{b}")])
        assert both.match("x.dcm") == patterns.PathMatch("One", {"a": "x"})
        assert both.match("x.ima") == patterns.PathMatch("Two", {"b": "x.ima"})
        assert both.captures == ("a", "b")


class TestNamesUsedTwice:
    def test_both_places_hold_the_same_text(self):
        assert values(("{ID}_{ID}",), "a_a") == {"ID": "a"}
        assert values(("{ID}_{ID}",), "a_b") is None
        assert values(("{ID}_{ID}",), "a_A") is None
        assert values(("{ID}", "{ID}-{n}.dcm"), "7/7-1.dcm") == {"ID": "7", "n": "1"}
        assert values(("{ID}", "{ID}-{n}.dcm"), "7/8-1.dcm") is None

    def test_the_first_reading_gives_way_to_one_that_agrees(self):
        assert values(("{ID}-{b}", "{ID}.dcm"), "x-y-z/x.dcm") == {"ID": "x", "b": "y-z"}
        assert values(("{ID}-{b}", "{ID}.dcm"), "x-y-z/x-y.dcm") == {"ID": "x-y", "b": "z"}
        assert values(("**", "{ID}", "**", "{ID}", "{f}"), "1/2/3/2/f") == {"ID": "2", "f": "f"}

    def test_digits_too(self):
        assert values(("{YYYY}", "{YYYY}{MM}", "{f}"), "2020/202003/a") == {
            "YYYY": "2020",
            "MM": "03",
            "f": "a",
        }
        assert values(("{YYYY}", "{YYYY}{MM}", "{f}"), "2020/202103/a") is None

    def test_the_reason_names_what_differs(self):
        assert reason(("{ID}", "{ID}.dcm"), "7/8.dcm") == (
            "Set: {ID} is used several times, and the path has different text there ('7' and '8')"
        )


class TestReasons:
    def test_it_names_the_part_where_the_set_stopped(self):
        assert reason(NESTED, "A-1/d/CT/notes.txt") == "Set: 'notes.txt' does not fit '{filename}.dcm'"
        assert reason(NESTED, "A/d/CT/a.dcm") == "Set: 'A' does not fit '{SubjectName}-{ID}'"

    def test_every_set_has_its_reason(self):
        two = patterns.compile_sets([pattern_set("One", "{a}.dcm"), pattern_set("Two", "x", "{b}")])
        assert two.match("n.txt") == patterns.NoMatch(
            (
                "One: 'n.txt' does not fit '{a}.dcm'",
                "Two: the file is in no folder, and the pattern is for 1 folder",
            ),
            (
                "One: a file name does not fit '{a}.dcm'",
                "Two: the file is in no folder, and the pattern is for 1 folder",
            ),
        )

    def test_too_few_and_too_many_folders_are_counted(self):
        assert reason(NESTED, "A-1/CT/a.dcm") == (
            "Set: the file is in 2 folders,"
            " and the pattern is for at least 3 folders (** stands for one or more)"
        )
        assert (
            reason(("{a}", "{f}"), "1/2/f")
            == "Set: the file is in 2 folders, and the pattern is for 1 folder"
        )

    def test_a_one_letter_name_is_explained(self):
        said = reason(("{D}",), "12")
        assert said.startswith("Set: '12' does not fit '{D}' ({D} is exactly 1 digit; ")
        assert reason(("{YYYY}{D}",), "x").startswith(
            "Set: 'x' does not fit '{YYYY}{D}' ({YYYY} is exactly 4 digits, {D} is exactly 1 digit"
        )
        assert reason(("{YYYY}",), "x") == "Set: 'x' does not fit '{YYYY}' ({YYYY} is exactly 4 digits)"

    def test_between_two_stars_the_nearest_stop_is_named(self):
        parts = ("**", "a", "b{x}", "**", "{f}")
        assert reason(parts, "0/a/c/1/2/3/f") == "Set: 'c' does not fit 'b{x}'"
        assert reason(parts, "0/1/2/3/4/f") == "Set: no folder fits 'a'"

    def test_rules_hold_nothing_of_the_path(self):
        sets = [
            pattern_set("One", *NESTED),
            pattern_set("Two", "{ID}", "{ID}", "*", "{f}"),
            pattern_set("Three", "*", "*", "*", "{YYYY}"),
            pattern_set("Four", "{f}"),
        ]
        both = patterns.compile_sets(sets)
        for path in ("Doe/Doe2/Doe3/Doe4", "Doe-1/Doe2/Doe3/Doe4", "Doe"):
            result = both.match(path)
            rules = result.rules if isinstance(result, patterns.NoMatch) else ()
            assert "Doe" not in "".join(rules)
        assert isinstance(patterns.compile_sets(sets[:3]).match("Doe/Doe2/Doe3/Doe4"), patterns.NoMatch)

    def test_long_names_are_cut_in_reasons(self):
        assert len(reason(("x",), "y" * 5000)) < 150

    def test_explain_says_what_each_set_makes_of_a_path(self):
        two = patterns.compile_sets([pattern_set("One", "{a}.dcm"), pattern_set("Two", "{b}")])
        assert two.explain("n.txt") == (
            "One ({a}.dcm) does not fit: 'n.txt' does not fit '{a}.dcm'",
            "Two ({b}) fits: b = 'n.txt'",
        )


class TestProblems:
    @pytest.mark.parametrize(
        ("cell", "said"),
        [
            ("{}", "'{}' has no name"),
            ("{Subject Name}", "Write {SubjectName}"),
            ("{1st}", "is not a name"),
            ("{ID", "unmatched brace"),
            ("ID}", "unmatched brace"),
            ("{a{b}}", "unmatched brace"),
            ("*.dcm", "alone in its cell"),
            ("***", "alone in its cell"),
            ("a/b", "a cell of its own"),
            ("a\\b", "a cell of its own"),
            ("{DICOM:StudyDate}", "Mappings"),
            ("{Zoë}", "is not a name"),
        ],
    )
    def test_a_wrong_cell_is_named_with_what_to_write(self, cell, said):
        (problem,) = problems(pattern_set("Set", "{x}", cell))
        assert problem.startswith("Configuration D5: ")
        assert said in problem

    def test_all_problems_are_told_at_once(self):
        told = problems(pattern_set("A", "{}", "{x", "{ok}"), pattern_set("A", "{b}"), pattern_set("C"))
        assert [problem[:18] for problem in told] == ["Configuration C5: ", "Configuration D5: "] + [
            "Configuration B5: "
        ] * 2
        assert "used twice" in told[2]
        assert "has no patterns" in told[3]

    @given(st.lists(st.text(alphabet="{}*aA_ 1/-", max_size=8), max_size=4))
    def test_any_cells_compile_or_are_problems(self, cells):
        try:
            result = matcher(*cells).match("a/b/c")
        except errors.ConfigurationError as trouble:
            told: object = trouble.problems
        else:
            told = result
        assert told


# -- Against every reading there is -----------------------------------------------------------------------


def readings(cells, path):
    """Yield all readings of `path`, the preferred first, with no cleverness at all."""

    def of_tokens(tokens, text, bound):
        if not tokens:
            if not text:
                yield bound
            return
        token, rest = tokens[0], tokens[1:]
        if not token.startswith("{"):
            if text[: len(token)].lower() == token.lower():
                yield from of_tokens(rest, text[len(token) :], bound)
            return
        name = token[1:-1]
        digits = len(name) if re.fullmatch(r"([A-Z])\1*", name) else 0
        for size in range(len(text), 0, -1):
            taken = text[:size]
            if digits and not re.fullmatch(f"[0-9]{{{digits}}}", taken):
                continue
            if bound.get(name, taken) == taken:
                yield from of_tokens(rest, text[size:], {**bound, name: taken})

    def of_parts(cells, parts, bound):
        if not cells:
            if not parts:
                yield bound
            return
        cell, rest = cells[0], cells[1:]
        if cell == "**":
            for many in range(1, len(parts) + 1):
                yield from of_parts(rest, parts[many:], bound)
        elif parts and cell == "*":
            yield from of_parts(rest, parts[1:], bound)
        elif parts:
            for now in of_tokens(re.findall(r"\{\w+\}|[^{}]+", cell), parts[0], bound):
                yield from of_parts(rest, parts[1:], now)

    return of_parts(cells, path.split("/"), {})


token = st.sampled_from(["{a}", "{b}", "{N}", "{NN}", "-", "x", "{ID}", "{c}"])
cell = st.one_of(st.lists(token, min_size=1, max_size=4).map("".join), st.sampled_from(["*", "**", "**"]))
cells_of_set = st.lists(cell, min_size=1, max_size=5).map(tuple)
some_text = st.text(alphabet="-x1Xa", max_size=4)


@st.composite
def cells_and_path(draw):
    """A pattern set and a path that fits it, or fails to by little: captures may be filled with nothing."""
    cells = draw(cells_of_set)
    parts = []
    filled = {name: draw(some_text) for name in "abc"}
    for one in cells:
        if one in ("*", "**"):
            parts += draw(st.lists(some_text, min_size=1, max_size=1 if one == "*" else 3))
            continue
        agreeing = draw(st.booleans())
        part = ""
        for piece in re.findall(r"\{\w+\}|[^{}]+", one):
            name = piece[1:-1]
            if piece[0] != "{":
                part += piece
            elif set(name) == {"N"}:
                part += draw(st.sampled_from(["1" * len(name), "1" * len(name), "1"]))
            else:
                part += filled[name] if agreeing and name in filled else draw(some_text)
        parts.append(part)
    return cells, "/".join(part or "-" for part in parts)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(cells_and_path())
def test_the_match_is_the_preferred_one_of_all_readings(example):
    cells, path = example
    assert values(cells, path) == next(readings(cells, path), None)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(cells_and_path())
def test_the_search_for_names_used_twice_agrees_too(example):
    cells, path = example
    tokens = patterns._flat(matcher(*cells).sets[0]._parts)
    assert patterns.search(tokens, path)[0] == next(readings(cells, path), None)


@settings(max_examples=300, deadline=None)
@given(st.lists(token, min_size=1, max_size=4), st.data())
def test_a_path_made_from_a_pattern_fits_it(tokens, data):
    filled = {
        name: data.draw(st.text(alphabet="-xX1", min_size=1, max_size=3)) for name in ("a", "b", "ID", "c")
    }
    filled |= {"N": "7", "NN": "42"}
    path = "".join(filled[t[1:-1]] if t.startswith("{") else t for t in tokens)
    found = values(("".join(tokens),), path)
    assert found is not None
    assert set(found) == {t[1:-1] for t in tokens if t.startswith("{")}


# -- What it costs ----------------------------------------------------------------------------------------


def test_many_captures_in_a_long_name_are_read_without_backtracking():
    # Trying all splits of this name would take more than 10**18 steps.
    cell = "-".join(f"{{{name}}}" for name in "abcdefghijkl")
    assert values((cell + "!",), "-x" * 2000) is None
    found = values((cell,), "x-" * 2000 + "x")
    assert found is not None
    assert len(found["a"]) == 2 * 2000 + 1 - 2 * 11


def test_two_stars_read_each_part_at_most_once_for_each_cell(monkeypatch):
    reads = itertools.count()
    original = patterns._Part.read

    def counted(self, text):
        next(reads)
        return original(self, text)

    monkeypatch.setattr(patterns._Part, "read", counted)
    cells = (*("**", "{a}x", "{b}y") * 6, "**", "{f}.dcm")
    path = "/".join(["1x", "1z"] * 200) + "/f.dcm"
    assert values(cells, path) is None
    assert next(reads) <= len(cells) * 401


def test_names_used_twice_give_up_after_a_bounded_search():
    cell = "-".join(f"{{{name}}}" for name in ("ID", "b", "ID", "c", "e", "f", "ID"))
    path = "-".join("x" * (1 + n % 7) for n in range(120)) + "/y.dcm"
    tokens = patterns._flat(patterns.compile_sets([pattern_set("Set", cell, "{ID}.dcm")]).sets[0]._parts)
    found, steps = patterns.search(tokens, path)
    assert found is None
    assert steps <= patterns.MOST_STEPS + 1
    assert "too many ways" in reason((cell, "{ID}.dcm"), path)


@pytest.mark.parametrize("last", ["!", "!{ID}"])
def test_the_search_remembers_what_failed(last):
    cell = "-".join(f"{{{name}}}" for name in "abcdefgh") + last
    tokens = patterns._flat(matcher("{ID}", cell).sets[0]._parts)
    path = "q/" + "-x" * 22
    found, steps = patterns.search(tokens, path)
    assert found is None
    assert steps <= len(tokens) * len(path) ** 2 < patterns.MOST_STEPS


def test_folders_are_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr(patterns, "MOST_FOLDERS", 3)
    one = matcher("{a}", "{f}")
    for number in range(20):
        assert one.match(f"{number}/x") == patterns.PathMatch("Set", {"a": str(number), "f": "x"})
        assert len(one._folders) <= 3


def test_matches_do_not_share_their_values():
    one = matcher("{a}", "{f}")
    first = one.match("1/x")
    assert isinstance(first, patterns.PathMatch)
    first.values["a"] = "changed"
    assert one.match("1/x") == patterns.PathMatch("Set", {"a": "1", "f": "x"})


def test_a_matcher_can_be_handed_to_another_process():
    one = pickle.loads(pickle.dumps(matcher(*NESTED)))
    assert isinstance(one.match("A-1/d/CT/a.dcm"), patterns.PathMatch)
