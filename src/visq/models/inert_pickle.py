"""Reads the structure of a pickle without importing or calling anything that it names.

A pickle is a program. This one runs with every class and function replaced by a `Global`, which is only a name, and
with every object replaced by a `Record`, which only holds data. So a file can never run code, and a checkpoint whose
training options hold a pathlib.Path or a yacs configuration still gives its weights.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: Names of the standard library that checkpoints hold as data. All others are refused: os.system is never a weight.
ALLOWED = frozenset(
    [
        *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
        *(f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter", "deque")),
        *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
        *(
            f"{module}.{name}"
            for module in ("builtins", "__builtin__")
            for name in ("dict", "list", "tuple", "set", "frozenset", "int", "float", "complex", "bool", "str", "bytes")
        ),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bytearray", "slice", "object")),
        "argparse.Namespace",
        "types.SimpleNamespace",
        "functools.partial",
        "uuid.UUID",
        "decimal.Decimal",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
        "_codecs.encode",
    ]
)
#: Packages whose objects are ordinary in a checkpoint; objects of other packages are named to the user.
ORDINARY = frozenset(
    [
        *("torch", "numpy", "timm", "transformers", "accelerate", "mmengine", "mmcv"),
        *("lightning", "lightning_fabric", "pytorch_lightning"),
        *("yacs", "omegaconf", "easydict", "addict", "ml_collections"),
    ]
)
_STANDARD = sys.stdlib_module_names | {"__builtin__", "copy_reg"}
#: Most containers and objects of a pickle.
MOST_RECORDS = 1_000_000


class RefusedName(Exception):
    """Says which name of a pickle was refused: one that no checkpoint needs."""


class Global:
    """Stands for a class or function that a pickle names. It is a name and nothing else."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Record(dict[Any, Any]):
    """Stands for a dict or an object of a pickle; the mapping holds its items and attributes.

    Attributes:
        name: of its class or of the function that would have made it; `dict` for a plain dict.
        arguments: what the class or function would have been called with.
        state: what the object would have been restored from, where that is no mapping.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str = "dict", arguments: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.name, self.arguments = name, arguments
        self.state: Any = None

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def put(self, key: Any, value: Any) -> None:
        """Sets an item. Keys that are no scalars become anonymous: the hash of a nested tuple can take for ever."""
        plain = key is None or isinstance(key, str | bytes | int | float | Record)
        self[key if plain else Record("key")] = value

    def restore(self, state: Any) -> None:
        """Takes an object's state: a mapping of attributes, or a pair of attributes and slots."""
        if self.name == "collections.OrderedDict":  # its attribute `_metadata` is no entry
            return
        self.state = state
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, Mapping):
                for key, value in part.items():
                    self.put(key, value)


class Structure(pickle._Unpickler):
    """Reads a pickle into plain values, lists, tuples, `Record` and `Global`, and nothing else.

    Arguments:
        makers: name of a function -> what turns the arguments of its call into something better than a Record.
        persistent: turns a persistent id, by which torch's pickles refer to storages, into an object.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, file: Any, makers: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.makers = {**_MAKERS, **makers}
        self.persistent = persistent
        self.unusual: dict[str, None] = {}  # names outside ORDINARY packages, in order
        self.records = 0

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise pickle.UnpicklingError("a reference to something outside of the pickle")
        return self.persistent(pid)

    def find_class(self, module: str, name: str) -> Global:
        full, package = f"{module}.{name}", module.partition(".")[0]
        if package in _STANDARD:
            if full not in ALLOWED:
                raise RefusedName(full)
        elif package not in ORDINARY:
            self.unusual[full] = None
        return Global(full)

    def record(self, name: str = "dict", arguments: tuple[Any, ...] = ()) -> Record:
        """Returns a new Record, as long as there are not too many."""
        self._count(1)
        return Record(name, arguments)

    def _count(self, records: int) -> None:
        self.records += records
        if self.records > MOST_RECORDS:
            raise pickle.UnpicklingError(f"more than {MOST_RECORDS:,} objects")

    def called(self, function: Any, arguments: Any) -> Any:
        """Returns what stands for `function(*arguments)`."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of something that is no class")
        if function.name == "torch._tensor._rebuild_from_type_v2" and len(arguments) == 4:
            return self.called(arguments[0], arguments[2])
        maker = self.makers.get(function.name)
        if maker is not None:
            return maker(*arguments)
        record = self.record(function.name, arguments)
        if function.name.startswith("collections."):  # written by Python 2 as a list of pairs
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else ()
            self._count(len(pairs))
            for key, value in pairs:
                record.put(key, value)
        return record

    # One method for each opcode that would otherwise call, change or hash something.

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self.called(function, arguments))

    def _newobj(self) -> None:
        self._reduce()

    def _newobj_ex(self) -> None:
        self.stack.pop()
        self._reduce()

    def _inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        arguments = tuple(self.pop_mark())  # which also changes where `append` appends
        self.append(self.called(self.find_class(module, name), arguments))

    def _obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(self.called(function, tuple(arguments)))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            self._count(sum(len(part) for part in state if isinstance(part, Record)) if isinstance(state, tuple) else 0)
            self._count(len(state) if isinstance(state, Record) else 1)
            target.restore(state)

    def _empty_dict(self) -> None:
        self.append(self.record())

    def _dict(self) -> None:
        items, record = self.pop_mark(), self.record()
        for key, value in zip(items[::2], items[1::2], strict=True):
            record.put(key, value)
        self.append(record)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._target().put(key, value)

    def _setitems(self) -> None:
        items = self.pop_mark()
        target = self._target()
        for key, value in zip(items[::2], items[1::2], strict=True):
            target.put(key, value)

    def _target(self) -> Record:
        target = self.stack[-1]
        if not isinstance(target, Record):
            raise pickle.UnpicklingError("items for something that is no dict")
        return target

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _empty_set(self) -> None:
        self.append(self.record("set"))

    def _frozenset(self) -> None:
        items = tuple(self.pop_mark())
        self.append(self.record("frozenset", items))

    def _additems(self) -> None:
        self.pop_mark()

    def _extension(self) -> None:
        raise pickle.UnpicklingError("a code of the extension registry")


_OPCODES: dict[int, Callable[[Any], None]] = {
    pickle.REDUCE[0]: Structure._reduce,
    pickle.NEWOBJ[0]: Structure._newobj,
    pickle.NEWOBJ_EX[0]: Structure._newobj_ex,
    pickle.INST[0]: Structure._inst,
    pickle.OBJ[0]: Structure._obj,
    pickle.BUILD[0]: Structure._build,
    pickle.EMPTY_DICT[0]: Structure._empty_dict,
    pickle.DICT[0]: Structure._dict,
    pickle.SETITEM[0]: Structure._setitem,
    pickle.SETITEMS[0]: Structure._setitems,
    pickle.APPEND[0]: Structure._append,
    pickle.APPENDS[0]: Structure._appends,
    pickle.EMPTY_SET[0]: Structure._empty_set,
    pickle.FROZENSET[0]: Structure._frozenset,
    pickle.ADDITEMS[0]: Structure._additems,
    pickle.EXT1[0]: Structure._extension,
    pickle.EXT2[0]: Structure._extension,
    pickle.EXT4[0]: Structure._extension,
}
Structure.dispatch = {**pickle._Unpickler.dispatch, **_OPCODES}


def _encoded(text: Any, encoding: Any = "utf-8") -> bytes:
    """Returns bytes from the latin1 text that protocol 2 writes for them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("an encoding other than latin1")
    return text.encode("latin1")


def _numpy_scalar(dtype: Any = None, data: Any = None) -> Any:
    """Returns a NumPy number as a Python number, anything else as a Record."""
    code = dtype.arguments[0] if isinstance(dtype, Record) and dtype.arguments else None
    order = dtype.state[1] if isinstance(dtype, Record) and isinstance(dtype.state, tuple) and dtype.state[1:] else "<"
    if isinstance(data, bytes) and isinstance(code, str) and re.fullmatch(r"[bifu][1248]", code):
        kind = np.dtype((order if order in ("<", ">") else "") + code)
        if kind.itemsize == len(data):
            return np.frombuffer(data, kind)[0].item()
    return Record("numpy.generic", (dtype, data))


_MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
