"""Tests that a pickle's names are never imported, called, changed or hashed."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import time
import types
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from visq.models.inert_pickle import MOST_RECORDS, Global, Record, RefusedName, Structure


def read(data: bytes) -> Any:
    return Structure(io.BytesIO(data), {}).load()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_objects_become_data(protocol: int) -> None:
    value = {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "names": ["a", "b"],
        "none": None,
        "path": Path("runs/x"),
        "args": argparse.Namespace(input_size=128, nested=types.SimpleNamespace(depth=3)),
        "ordered": collections.OrderedDict(a=1, b=2),
        "best": np.float64(76.5),
        "epoch": np.int32(7),
        "done": np.bool_(True),
        "build": partial(PurePosixPath, "x"),
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "raw": b"\x00\xff",
    }
    found = read(pickle.dumps(value, protocol))
    assert isinstance(found, Record)
    same = ("lr", "betas", "names", "none", "raw")
    assert {key: found[key] for key in same} == {key: value[key] for key in same}
    assert (found["best"], found["epoch"], found["done"]) == (76.5, 7, True)
    assert found["args"]["input_size"] == 128 and found["args"]["nested"]["depth"] == 3
    assert dict(found["ordered"]) == {"a": 1, "b": 2}
    assert isinstance(found["path"], Record) and found["path"].name.startswith("pathlib.")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [(os.mkdir,), (exec,), (eval,), (os.system,), (getattr,), (__import__,), (open,)])
def test_functions_of_the_standard_library_are_refused(tmp_path: Path, protocol: int, call: tuple) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (call[0], (str(tmp_path / "witness"),))

    with pytest.raises(RefusedName, match=call[0].__name__):
        read(pickle.dumps({"model": Bomb()}, protocol))
    assert not (tmp_path / "witness").exists()


def test_functions_of_other_packages_are_names(tmp_path: Path) -> None:
    """`runstring` of numpy would execute its argument."""
    code = f"open({str(tmp_path / 'witness')!r}, 'w')".encode()
    data = b"cnumpy.testing._private.utils\nrunstring\n(S'" + code.replace(b"'", b'"') + b"'\n(dtR."
    structure = Structure(io.BytesIO(data), {})
    found = structure.load()
    assert isinstance(found, Record) and found.name == "numpy.testing._private.utils.runstring"
    assert not (tmp_path / "witness").exists()
    assert Structure(io.BytesIO(b"cantigravity_\nx\n."), {}).load().name == "antigravity_.x"
    assert "antigravity_" not in sys.modules


def test_a_user_s_own_classes_are_data_and_named() -> None:
    module = types.ModuleType("own_project")
    module.Config = type("Config", (dict,), {"__module__": "own_project"})  # type: ignore[attr-defined]
    sys.modules["own_project"] = module
    try:
        config = module.Config(DATA=module.Config(IMG_SIZE=96))
        config.frozen = True
        data = pickle.dumps(config, 2)
    finally:
        del sys.modules["own_project"]
    structure = Structure(io.BytesIO(data), {})
    found = structure.load()
    assert found["DATA"]["IMG_SIZE"] == 96 and found["frozen"] is True
    assert list(structure.unusual) == ["own_project.Config"]


@pytest.mark.parametrize(
    "data",
    [
        b"cargparse\nNamespace\n}b.",  # changes a class
        b"(dN(dR.",  # calls None
        b"](K\x01u.",  # items for a list
        b"\x80\x02\x82\x01.",  # a code of the extension registry
        b"c__main__\n" + b"x" * 10,  # ends early
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",  # a frame larger than any memory
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 61) + b".",  # a bytearray larger than any memory
    ],
)
def test_damaged_pickles_raise_or_hold_data(data: bytes) -> None:
    before = vars(argparse.Namespace).copy()
    try:
        found = read(data)
    except Exception as error:
        assert not isinstance(error, SystemExit)
    else:
        assert found is None or isinstance(found, Record | Global)
    assert vars(argparse.Namespace) == before


def test_nested_keys_take_no_time() -> None:
    """The hash of a tuple nested twice in itself, 60 levels deep, would take 2^60 steps."""
    data = b"}" + b"K\x01" + b"q\x01h\x01\x86" * 60 + b"K\x02s."
    start = time.perf_counter()
    assert len(read(data)) == 1
    assert time.perf_counter() - start < 1


def test_too_many_objects_are_refused() -> None:
    start = time.perf_counter()
    with pytest.raises(pickle.UnpicklingError, match="objects"):
        read(b"(" + b"}" * (MOST_RECORDS + 1) + b"t.")
    state = b"}(" + b"".join(b"K%cK\x01" % i for i in range(200)) + b"uq\x01"
    with pytest.raises(pickle.UnpicklingError, match="objects"):
        read(state + b"cargparse\nNamespace\n)\x81" + b"h\x01b" * 6000 + b".")
    assert time.perf_counter() - start < 20
