"""Checks that an inconsistent program is refused before anything is computed from it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from visq.integer.program import Program
from visq.lowering import lower
from visq.models import create_model

MODEL = create_model(
    "vim", image_size=8, patch_size=4, stride=4, channels=1, embed_dim=8, depth=1, d_state=2, num_classes=3
)
PROGRAM = lower(MODEL.eval()).to_json()
#: A program with every operation over maps.
MAPS = lower(
    create_model("vmamba", image_size=8, channels=1, embed_dim=4, depths=[1, 1], mlp_ratio=1, num_classes=3).eval()
).to_json()


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every leaf of a JSON value."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in paths(item, (*path, key))]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in paths(item, (*path, i))]
    return [path]


LEAVES = [(program, path) for program in (PROGRAM, MAPS) for path in paths(program)]
WILD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


def changed(path: tuple[Any, ...], value: Any, program: dict[str, Any] = PROGRAM) -> dict[str, Any]:
    document = copy.deepcopy(program)
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(LEAVES), WILD)
def test_any_changed_value_is_refused_or_leaves_a_consistent_program(
    leaf: tuple[dict[str, Any], tuple[Any, ...]], value: Any
) -> None:
    try:
        program = Program.model_validate(changed(leaf[1], value, leaf[0]))
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


def operation_of(kind: str, program: dict[str, Any] = PROGRAM) -> int:
    return next(i for i, op in enumerate(program["operations"]) if op["source"]["kind"] == kind)


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


CONV, TRANSPOSE, MEAN = (operation_of(kind, MAPS) for kind in ("conv2d", "transpose", "mean"))
WINDOWS, DENSE = operation_of("patches", MAPS), operation_of("dense_conv2d", MAPS)


@pytest.mark.parametrize(
    ("operation", "key", "value", "message"),
    [
        (DENSE, "input", MAPS["output"], "before it is written"),
        (DENSE, "input", "nowhere", "not declared"),
        (DENSE, "kernel", [5, 3], "not the number|larger than"),
        (DENSE, "kernel", [3, 2**20], "larger than the image|number of patches"),
        (DENSE, "stride", [1, 2], "not the number of patches"),
        (DENSE, "padding", [1, 3], "outside"),
        (DENSE, "padding", [1, -1], "greater than or equal"),
        (DENSE, "kernel", [3], "Field required|missing"),
        (WINDOWS, "patch", 5, "not the number|larger than"),
        (WINDOWS, "patch", 2**20, "larger than the image|number of patches"),
        (WINDOWS, "stride", 1, "not the number of patches"),
        (WINDOWS, "padding", 3, "outside"),
        (WINDOWS, "padding", 2**20, "outside"),
        (WINDOWS, "padding", -1, "greater than or equal"),
        (CONV, "kernel", 16, "less than or equal"),
        (CONV, "kernel", 2, "not the number of patches"),
        (CONV, "padding", 0, "not the number|larger"),
        (CONV, "padding", 2**70, "less than or equal"),
        (TRANSPOSE, "height", 3, "number of rows"),
        (TRANSPOSE, "width", 2**20, "number of rows"),
        (TRANSPOSE, "input", MAPS["output"], "before it is written"),
        (MEAN, "input", "nowhere", "not declared"),
    ],
)
def test_what_is_wrong_with_an_operation_over_maps_is_said(operation: int, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Program.model_validate(changed(("operations", operation, "source", key), value, MAPS))


@pytest.mark.parametrize("operation", [WINDOWS, CONV, TRANSPOSE, MEAN])
@pytest.mark.parametrize("key", ["rows", "width"])
def test_operations_over_maps_have_the_shape_of_their_input(operation: int, key: str) -> None:
    with pytest.raises(ValidationError, match=r"not the number of patches|width is not|shape is not|mean is one row"):
        Program.model_validate(changed(("operations", operation, key), 77, MAPS))


def test_a_map_that_is_not_square_is_refused() -> None:
    """Twelve rows are no square, so windows and depthwise convolutions find no side."""
    for source in ({"kind": "patches", "patch": 1, "stride": 1}, {"kind": "conv2d", "weight": "w", "kernel": 1}):
        tensors = {"image": {"rows": 16, "width": 1}, "map": {"rows": 12, "width": 1}, "t": {"rows": 9, "width": 1}}
        pixels = {"name": "pixels", "rows": 16, "width": 1, "source": {"kind": "patches", "patch": 1, "stride": 1}}
        part = {"name": "part", "rows": 12, "width": 1, "source": {"kind": "concat", "parts": [["image", 0, 12]]}}
        reader = {"name": "reader", "rows": 9, "width": 1, "source": {**source, "input": "map"}}
        operations = [
            {**operation, "body": [{"op": "store", "src": 0, "tensor": name}]}
            for operation, name in ((pixels, "image"), (part, "map"), (reader, "t"))
        ]
        document = {"channels": 1, "size": 4, "output": "t", "tensors": tensors, "operations": operations}
        with pytest.raises(ValidationError, match="map is no square map"):
            Program.model_validate(document)


def test_programs_of_before_there_were_maps_still_load() -> None:
    """Absent values are not written: patches of the image have neither `padding` nor `input`."""
    source = PROGRAM["operations"][0]["source"]
    assert source == {"kind": "patches", "patch": 4, "stride": 4}
    assert Program.model_validate(PROGRAM).to_json() == PROGRAM


def test_reading_before_writing_is_refused() -> None:
    document = copy.deepcopy(PROGRAM)
    document["operations"].insert(0, document["operations"].pop(LINEAR))
    with pytest.raises(ValidationError, match="before it is written"):
        Program.model_validate(document)


def test_a_program_is_plain_json() -> None:
    assert json.loads(json.dumps(PROGRAM)) == PROGRAM
