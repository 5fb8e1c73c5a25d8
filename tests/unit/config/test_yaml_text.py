import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaqk.config.yaml_text import format_yaml, parse_yaml, show

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("12", 12),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("True", True),
        ("~", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("[0.5, 1]", [0.5, 1]),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}", "- {k: 1, k: 2}"])
def test_a_repeated_key_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"^key \w appears twice \(line \d, column \d+\)$"):
        parse_yaml(text)


def test_a_merged_key_may_be_overridden() -> None:
    assert parse_yaml("base: &b {x: 1}\nhere: {<<: *b, x: 2}")["here"] == {"x": 2}


def test_a_mapping_may_be_merged_before_it_is_built() -> None:
    text = "base: &a {x: 1}\nfirst: {deep: &b {<<: *a, x: 2}}\nsecond: {<<: *b}"
    assert parse_yaml(text)["second"] == {"x": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # Nine levels of nine aliases each, a billion values in all.
        (
            "- &a0 [1]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
            "stands for more than 100000 values (line 6, column 3)",
        ),
        ("[" + "1, " * 100_000 + "1]", "stands for more than 100000 values (line 1, column 1)"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply (line 1, column 1)"),
        # A chain of aliases is as deep as what it stands for.
        ("- &a0 [1]\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 200)), "nested too deeply (line 100, co"),
        ("&a [*a]", "stands for more than 100000 values (line 1, column 1)"),
        ("a: &a {b: {c: *a}}", "stands for more than 100000 values (line 1, column 11)"),
    ],
)
def test_a_document_that_would_explode_is_refused_promptly(text: str, problem: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}"):
        parse_yaml(text)
    # The longest takes two seconds to scan; a bomb took more than thirty.
    assert time.process_time() - began < 15


def test_a_syntax_error_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"\(line 1, column 2\)$") as caught:
        parse_yaml("[")
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES))
def test_what_is_written_reads_back(value: dict[str, object]) -> None:
    assert parse_yaml(format_yaml(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ten", "ten"),
        ("10", "'10'"),
        ("1e-4", "'1e-4'"),
        (True, "true"),
        (None, "null"),
        ((1, 2), "[1, 2]"),
        ({"a": {"b": 1}}, "{a: {b: 1}}"),
        ("a\nb", "'a b'"),
    ],
)
def test_values_are_shown_as_a_user_writes_them(value: object, text: str) -> None:
    assert show(value) == text


def test_a_long_value_is_cut_and_an_odd_one_is_shown_as_python_does() -> None:
    assert show("x" * 200) == "x" * 77 + "..."
    assert show({1j}) == "{1j}"
