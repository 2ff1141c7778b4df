from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mms_sdk.errors import InvalidName
from mms_sdk.schema.names import (
    DatasetRef,
    ModelRef,
    Name,
    check_name,
    parse_dataset_ref,
    parse_model_ref,
    suggest_name,
)

FIRST = string.ascii_lowercase + string.digits
REST = FIRST + "._-"
names = st.builds(str.__add__, st.sampled_from(FIRST), st.text(REST, max_size=62))
aliases = names.filter(lambda name: not name[0].isdigit())
numbers = st.integers(1, 99_999_999)
# Nearly right: the characters of a reference and those that look or act like them.
texts = st.text(st.one_of(st.sampled_from(REST + "@/ \n\r\t\0\\:%A~ı٣²①é"), st.characters()), max_size=70)
FIELD = TypeAdapter(Name)


def is_name(text: str) -> bool:
    """The rule, written down a second time."""
    return 1 <= len(text) <= 63 and text[0] in FIRST and all(character in REST for character in text)


def is_number(text: str) -> bool:
    return 1 <= len(text) <= 8 and all(character in string.digits for character in text) and text[0] != "0"


def dataset_ref_of(text: str) -> DatasetRef | None:
    """The grammar `NAME[@N|@TAG][/SPLIT]`, tried with every way to cut the text."""
    head, *splits = text.split("/")
    name, *at = head.split("@")
    if not is_name(name) or len(splits) > 1 or len(at) > 1 or not all(map(is_name, splits)):
        return None
    snapshot: int | str | None = None
    if at and is_number(at[0]):
        snapshot = int(at[0])
    elif at and is_name(at[0]) and at[0][0] not in string.digits:
        snapshot = at[0]
    elif at:
        return None
    return DatasetRef(name=name, snapshot=snapshot, split=splits[0] if splits else None)


def model_ref_of(text: str) -> ModelRef | None:
    name, *at = text.split("@")
    if not is_name(name) or len(at) > 1:
        return None
    if not at:
        return ModelRef(name=name)
    if is_number(at[0]):
        return ModelRef(name=name, version=int(at[0]))
    return ModelRef(name=name, version=at[0]) if is_name(at[0]) and at[0][0] not in string.digits else None


@given(names)
def test_every_name_of_the_rule_is_accepted_as_it_is(name: str) -> None:
    assert check_name(name, what="dataset") == name
    assert FIELD.validate_python(name) == name


@given(texts)
def test_a_name_is_accepted_by_the_rule_and_by_nothing_else(text: str) -> None:
    if is_name(text):
        assert check_name(text, what="dataset") == text
        assert FIELD.validate_python(text) == text
        return
    with pytest.raises(InvalidName, match="a dataset name has 1 to 63 of a-z 0-9") as told:
        check_name(text, what="dataset")
    assert f"got {text!r}" in told.value.message
    with pytest.raises(ValidationError):
        FIELD.validate_python(text)


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "a.b_c-d", "0..", "a-"])
def test_names_at_the_edge_are_accepted(name: str) -> None:
    assert check_name(name, what="model") == FIELD.validate_python(name) == name


EDGES = [
    "",
    "a" * 64,
    "a\n",
    "\na",
    "a\r",
    "a\0",
    " a",
    "a ",
    "A",
    "-a",
    ".a",
    "..",
    "_a",
    "a/b",
    "a\\b",
    "a@b",
    "٣",
    "a٣",
    "é",
]


@pytest.mark.parametrize("name", EDGES)
def test_names_beyond_the_edge_are_refused_with_one_to_try(name: str) -> None:
    with pytest.raises(InvalidName, match="try '") as told:
        check_name(name, what="model")
    suggested = re.search(r"try '(.*)'$", told.value.message)
    assert suggested is not None
    assert is_name(suggested[1])
    with pytest.raises(ValidationError):
        FIELD.validate_python(name)


@given(st.text())
def test_what_is_suggested_is_a_name(text: str) -> None:
    assert is_name(suggest_name(text))


@given(names, st.none() | numbers | aliases, st.none() | names)
def test_a_dataset_reference_reads_back_as_it_was_written(
    name: str, snapshot: int | str | None, split: str | None
) -> None:
    ref = DatasetRef(name=name, snapshot=snapshot, split=split)
    assert parse_dataset_ref(str(ref)) == ref
    assert str(parse_dataset_ref(str(ref))) == str(ref)


@given(names, st.none() | numbers | aliases)
def test_a_model_reference_reads_back_as_it_was_written(name: str, version: int | str | None) -> None:
    ref = ModelRef(name=name, version=version)
    assert parse_model_ref(str(ref)) == ref


PIECES = st.lists(
    st.one_of(names, st.sampled_from("@/"), numbers.map(str), st.sampled_from(["0", "\n", ""])), max_size=6
)


@given(st.one_of(texts, PIECES.map("".join)))
def test_text_is_a_dataset_reference_by_the_grammar_or_refused(text: str) -> None:
    expected = dataset_ref_of(text)
    if expected is None:
        with pytest.raises(InvalidName):
            parse_dataset_ref(text)
    else:
        assert parse_dataset_ref(text) == expected
        assert str(expected) == text


@given(st.one_of(texts, PIECES.map("".join)))
def test_text_is_a_model_reference_by_the_grammar_or_refused(text: str) -> None:
    expected = model_ref_of(text)
    if expected is None:
        with pytest.raises(InvalidName):
            parse_model_ref(text)
    else:
        assert parse_model_ref(text) == expected
        assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "f@",
        "f@0",
        "f@01",
        "f@-1",
        "f@1.0",
        "f@٣",
        "f@7\n",
        "f@100000000",
        "f/",
        "f@7/",
        "f/a/b",
        "f/t@7",
        "/t",
        "@7",
        "f@7@8",
    ],
)
def test_a_dataset_reference_that_is_nearly_one_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_dataset_ref(text)


@pytest.mark.parametrize(
    "text", ["m@", "m@0", "m@01", "m@1a", "m@٣", "m@3\n", "m@champion\n", "m@100000000", "m/1", "@1", "m@a@b"]
)
def test_a_model_reference_that_is_nearly_one_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_model_ref(text)
