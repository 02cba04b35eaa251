"""YAML with places: what it refuses, where it says so, and that dumping is its inverse."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentlm_platform.errors import UserError
from latentlm_platform.located_yaml import (
    MAX_BYTES,
    MAX_DEPTH,
    Place,
    dump_yaml,
    parse_value,
    parse_yaml,
    read_yaml,
)


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = (
        "a: 1e-4\nb: -3\nc: 010\nd: on\ne: yes\nf: True\ng: true\nh: ~\ni: null\nj: 12:30:00\n"
        "k: 2024-01-01\nl: .5\nm: 1_000\nn: '1'\no: 0x10\np: =\nq: 1.\n"
    )
    assert parse_yaml(text, file="f").data == {
        "a": 1e-4, "b": -3, "c": 10, "d": "on", "e": "yes", "f": "True", "g": True, "h": None,
        "i": None, "j": "12:30:00", "k": "2024-01-01", "l": 0.5, "m": "1_000", "n": "1",
        "o": "0x10", "p": "=", "q": 1.0,
    }  # fmt: skip


def test_every_key_and_item_has_its_place() -> None:
    document = parse_yaml("a:\n  b: [1, {c: 2}]\nd: 3\n", file="f.yaml")
    assert document.places == {
        ("a",): Place("f.yaml", 1, 1),
        ("a", "b"): Place("f.yaml", 2, 3),
        ("a", "b", 0): Place("f.yaml", 2, 7),
        ("a", "b", 1): Place("f.yaml", 2, 10),
        ("a", "b", 1, "c"): Place("f.yaml", 2, 11),
        ("d",): Place("f.yaml", 3, 1),
    }
    assert str(document.place(("a", "x", "y"))) == "f.yaml:1:1"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3:1", "given twice, first in line 1"),
        ("s:\n  a: 1\n  a: 2\n", "f:3:3", "s.a is given twice"),
        ("a: &x 1\n", "f:1:4", "anchor &x"),
        ("a: 1\nb: *x\n", "f:2:4", "alias *x"),
        ("a: !!python/object:os.system x\n", "f:1:4", "tag tag:yaml.org,2002:python/object"),
        ("a: !!int '3'\n", "f:1:4", "tag tag:yaml.org,2002:int"),
        ("a: !t {b: 1}\n", "f:1:4", "tag !t"),
        ("1: a\n", "f:1:1", "key 1 is not plain text"),
        ("true: a\n", "f:1:1", "key true is not plain text"),
        ("? [a, b]\n: c\n", "f:1:3", "not plain text"),
        ("a: .inf\n", "f:1:4", "not a number of usable size"),
        ("a: -.inf\n", "f:1:4", "not a number of usable size"),
        ("a: .nan\n", "f:1:4", "not a number of usable size"),
        ("a: 1e999\n", "f:1:4", "not a number of usable size"),
        (f"a: {'9' * 5000}\n", "f:1:4", "not a number of usable size"),
    ],
)
def test_what_is_refused_is_collected(text: str, place: str, words: str) -> None:
    (problem,) = parse_yaml(text, file="f").problems
    assert str(problem.place) == place
    assert words in problem.message


def test_an_alias_bomb_is_not_expanded() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    document = parse_yaml("\n".join(lines), file="f")
    assert len(document.data["a11"]) == 9
    assert len(document.problems) == 12 + 11 * 9


@pytest.mark.parametrize(
    ("raw", "place", "words"),
    [
        (b"", "1:1", "is empty"),
        (b"# only a comment\n", "1:1", "is empty"),
        (b"- a\n- b\n", "1:1", "a mapping of keys to values"),
        (b"just text\n", "1:1", "a mapping of keys to values"),
        (b"a: 1\n\tb: 2\n", "2:1", "a tab stands here"),
        (b"a: 1\nb: \xff\n", "2:4", "0xff is not UTF-8"),
        (b"\x7fELF\x00\x01", "1:1", "binary"),
        ("a: 1\n".encode("utf-16"), "1:1", "binary"),
        (b"a: \x07\n", "1:4", "U+0007"),
        (b"a: [1, 2\nb: 3\n", "2:2", "not valid YAML"),
        (b"a: 1\nb\n", "3:1", "key without a colon"),
        (b"a: b: c\n", "1:5", "a colon stands where no key can be"),
        (b"a: 1\n---\nb: 2\n", "2:1", "second document"),
        (b"a: " + b"[" * (MAX_DEPTH + 5), "1:43", "nested more than"),
        (b"a: " + b"x" * MAX_BYTES, "1:1", "larger than"),
    ],
)
def test_what_is_no_yaml_ends_with_one_located_sentence(
    tmp_path: Path, raw: bytes, place: str, words: str
) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.report["problems"]
    assert f"{problem['line']}:{problem['column']}" == place
    assert words in problem["message"]
    assert f"{path}:{place}: " in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "f.yaml").data == {"a": 1}


def test_a_value_alone_has_no_line() -> None:
    assert parse_value("[1, a]", file="--set x") == ([1, "a"], [])
    _, (problem,) = parse_value("{a: 1, a: 2}", file="--set x")
    assert str(problem).startswith("--set x: ")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.sampled_from(["1e-4", "on", "true", "null", "~", "1", "=", "<<", "1:30", ".5", "-"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
def test_reading_undoes_dumping(data: dict[str, object]) -> None:
    document = parse_yaml(dump_yaml(data), file="f")
    assert document.problems == []
    assert document.data == data


@given(st.binary(max_size=80) | st.text("a:- []{}&*!|>'\"\n\t#?,1e", max_size=80).map(str.encode))
def test_whatever_the_bytes_only_a_user_error_comes_out(raw: bytes) -> None:
    with contextlib.suppress(UserError):
        parse_yaml(raw.decode("utf-8", "replace"), file="f")
