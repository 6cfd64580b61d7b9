"""A program is checked completely before anything is computed from it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from visq.lowering import lower
from visq.models import create_model
from visq.runtime.program import Program

MODEL = create_model(
    "vim", image_size=8, patch_size=4, stride=4, channels=1, embed_dim=8, depth=1, d_state=2, num_classes=3
)
PROGRAM = lower(MODEL.eval()).to_json()


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every leaf of a JSON value."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in paths(item, (*path, key))]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in paths(item, (*path, i))]
    return [path]


LEAVES = paths(PROGRAM)
WILD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(PROGRAM)
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(LEAVES), WILD)
def test_any_changed_value_is_refused_or_leaves_a_consistent_program(path: tuple[Any, ...], value: Any) -> None:
    try:
        program = Program.model_validate(changed(path, value))
    except ValidationError:
        return
    assert Program.model_validate(program.to_json()) == program
    for operation in program.operations:
        assert 1 <= operation.rows <= 1 << 20 and operation.width <= 1 << 20


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_missing_piece_is_refused_or_consistent(data: st.DataObject) -> None:
    document = copy.deepcopy(PROGRAM)
    operation = data.draw(st.integers(0, len(document["operations"]) - 1))
    body = document["operations"][operation]["body"]
    if body and data.draw(st.booleans()):
        body.pop(data.draw(st.integers(0, len(body) - 1)))
    else:
        document["operations"].pop(operation)
    try:
        Program.model_validate(document)
    except ValidationError as error:
        assert len(str(error)) < 3000


def operation_of(kind: str) -> int:
    return next(i for i, op in enumerate(PROGRAM["operations"]) if op["source"]["kind"] == kind)


LINEAR, SCAN, CONCAT = operation_of("linear"), operation_of("scan"), operation_of("concat")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("output",), "nowhere", "never written"),
        (("operations", LINEAR, "source", "input"), "t99", "not declared"),
        (("operations", LINEAR, "rows"), 7, "rows"),
        (("operations", SCAN, "width"), 8, "shape"),
        (("operations", CONCAT, "source", "parts", 0, 2), 3, "parts"),
        (("tensors", "t0", "width"), 2**40, "less than or equal"),
        (("tensors", "t0", "rows"), 5, "shape|rows"),
        (("size",), 2, "larger than the image"),
    ],
)
def test_what_is_wrong_is_said(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Program.model_validate(changed(path, value))


def test_reading_before_writing_is_refused() -> None:
    document = copy.deepcopy(PROGRAM)
    document["operations"].insert(0, document["operations"].pop(LINEAR))
    with pytest.raises(ValidationError, match="before it is written"):
        Program.model_validate(document)


def test_a_program_is_plain_json() -> None:
    assert json.loads(json.dumps(PROGRAM)) == PROGRAM
