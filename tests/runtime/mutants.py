"""Changes artifacts anywhere in config and tensors, by mutations that know the format, and makes the hashes fit."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from visq.artifact.schema import CONFIG_FILE, TENSOR_FILE, canonical, self_hash

DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "int16": "I16", "int64": "I64", "float64": "F64"}
#: Values of every type. Some of them are valid somewhere in a config.
WILD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 16, 255, 256, 1 << 20, 2**70, -(2**70), 0.5, 1e-30, 1e30, 1e300, -1.0,
    "", "t0", "t3", "cls_token", "head.weight", "layers.0.mixer.scan.h", "uniform", "token", [], {}, [None], ["x"],
)  # fmt: skip


@dataclass
class Artifact:
    """An artifact in memory: its config and its tensors by name."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @staticmethod
    def read(folder: Path) -> Artifact:
        config = json.loads((folder / CONFIG_FILE).read_text())
        return Artifact(config, dict(sorted(load((folder / TENSOR_FILE).read_bytes()).items())))  # load has no order

    def write(self, folder: Path, rng: random.Random) -> None:
        """Writes the files with hashes that fit. The table of tensors fits too, nine times in ten."""
        data = save({name: np.ascontiguousarray(value) for name, value in self.tensors.items()})
        self.config["tensor_file"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        if rng.random() < 0.9:
            self.config["tensors"] = {n: [DTYPES[str(v.dtype)], list(v.shape)] for n, v in self.tensors.items()}
        try:
            self.config["self_hash"] = self_hash(self.config)
        except ValueError:  # no hash is right for NaN
            self.config["self_hash"] = "0" * 64
        folder.mkdir(exist_ok=True)
        (folder / TENSOR_FILE).write_bytes(data)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config))

    def same(self, other: Artifact) -> bool:
        """Returns whether both artifacts have the same config and tensors."""
        tensors = self.tensors.keys() == other.tensors.keys() and all(
            value.dtype == other.tensors[name].dtype and np.array_equal(value, other.tensors[name])
            for name, value in self.tensors.items()
        )
        try:
            return tensors and canonical(self.config) == canonical(other.config)
        except ValueError:
            return False


Mutation = Callable[[Artifact, random.Random], None]
MUTATIONS: list[Mutation] = []


def mutation(weight: int) -> Callable[[Mutation], Mutation]:
    """Registers a mutation, which is drawn `weight` times as often as one of weight 1."""

    def register(function: Mutation) -> Mutation:
        MUTATIONS.extend([function] * weight)
        return function

    return register


def mutate(original: Artifact, seed: int) -> Artifact:
    """Returns a copy with one to three changes; a seed always gives the same ones."""
    rng = random.Random(seed)
    found = Artifact(copy.deepcopy(original.config), {name: x.copy() for name, x in original.tensors.items()})
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        for _ in range(20):  # a mutation may not apply to the place it picked
            try:
                rng.choice(MUTATIONS)(found, rng)
            except (IndexError, KeyError, TypeError, ValueError, OverflowError):
                continue
            break
    return found


# --- any value of the config


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value that holds no other values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    empty = True
    for key, item in items:
        empty = False
        yield from leaves(item, (*path, key))
    if empty:
        yield path


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def near(value: Any, rng: random.Random, others: list[Any]) -> Any:
    """Returns a value of the same type that may look right: a changed number, or a name used elsewhere."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, value * 2, value // 2, -value, value + 4])
    if isinstance(value, float):
        return rng.choice([value * 2, value / 2, -value, value * 1e20, 0.0])
    return rng.choice(others)


@mutation(6)
def any_value(artifact: Artifact, rng: random.Random) -> None:
    config = artifact.config
    parts = ["program"] * 4 + ["sites"] * 3 + ["shared", "preprocess", "classes", "architecture", "recipe", "coverage"]
    part = rng.choice(parts)
    paths = [(part, *path) for path in leaves(config[part])]
    path = rng.choice(paths)
    value = at(config, path)
    others = [at(config, p) for p in paths if p[-1] == path[-1] or isinstance(at(config, p), str)]
    at(config, path[:-1])[path[-1]] = rng.choice(WILD) if rng.random() < 0.35 else near(value, rng, others)


@mutation(2)
def missing_key(artifact: Artifact, rng: random.Random) -> None:
    path = rng.choice([path for path in leaves(artifact.config) if len(path) > 1])
    cut = path[: rng.randrange(2, len(path) + 1)]
    del at(artifact.config, cut[:-1])[cut[-1]]


@mutation(1)
def deep(artifact: Artifact, rng: random.Random) -> None:
    value: Any = 1
    for _ in range(rng.choice([70, 900])):
        value = [value]
    site = rng.choice(list(artifact.config["sites"].values()))
    site["quantizer"]["spec"]["estimator"] = {"name": "mse", "p": value}


# --- the program


def operation(artifact: Artifact, rng: random.Random, *kinds: str) -> dict[str, Any]:
    """Picks an operation whose source is one of `kinds`, by default any."""
    found = artifact.config["program"]["operations"]
    chosen: dict[str, Any] = rng.choice([op for op in found if not kinds or op["source"]["kind"] in kinds])
    return chosen


@mutation(3)
def order_of_operations(artifact: Artifact, rng: random.Random) -> None:
    operations = artifact.config["program"]["operations"]
    i = rng.randrange(len(operations))
    other = rng.choice(range(len(operations)))
    change = rng.randrange(4)
    if change == 0:
        operations[i], operations[other] = operations[other], operations[i]
    elif change == 1:
        del operations[i]
    elif change == 2:
        operations.insert(other, copy.deepcopy(operations[i]))
    else:
        operations[i]["source"] = copy.deepcopy(operations[other]["source"])


@mutation(4)
def instructions(artifact: Artifact, rng: random.Random) -> None:
    body = rng.choice([op["body"] for op in artifact.config["program"]["operations"] if op["body"]])
    i, other = rng.randrange(len(body)), rng.randrange(len(body))
    change = rng.randrange(5)
    if change == 0:
        body[i], body[other] = body[other], body[i]
    elif change == 1:
        del body[i]
    elif change == 2:
        body.insert(other, copy.deepcopy(body[i]))
    elif change == 3:
        step = rng.choice([step for step in body if step["op"] in ("silu", "softplus", "gelu", "neg")])
        step["op"] = rng.choice(["silu", "softplus", "gelu", "neg", "add"])
    else:
        step = rng.choice([step for step in body if "src" in step])
        step["src"] = rng.choice([0, *(s["dst"] for s in body if "dst" in s)])


@mutation(2)
def loads(artifact: Artifact, rng: random.Random) -> None:
    """Makes a body load any tensor, perhaps one that it stores itself."""
    body = operation(artifact, rng)["body"]
    tensor = rng.choice([*artifact.config["program"]["tensors"], *(s["tensor"] for s in body if s["op"] == "store")])
    step = {"op": "load", "dst": rng.choice([100, 200]), "tensor": tensor}
    if rng.random() < 0.3:
        step["row"] = rng.randrange(6)
    body.insert(rng.randrange(len(body) + 1), step)
    body.insert(rng.randrange(len(body) + 1), {"op": "add", "dst": 201, "a": step["dst"], "b": 0})


@mutation(3)
def directions(artifact: Artifact, rng: random.Random) -> None:
    program = artifact.config["program"]
    flags = [op["source"] for op in program["operations"] if op["source"]["kind"] in ("scan", "conv1d")]
    flags += list(program["tensors"].values())
    flags += [step for op in program["operations"] for step in op["body"] if step["op"] == "round"]
    for flag in rng.sample(flags, rng.choice([1, 1, len(flags)])):
        flag["reverse"] = not flag.get("reverse", False)


@mutation(3)
def inputs(artifact: Artifact, rng: random.Random) -> None:
    source = operation(artifact, rng, "linear", "conv1d", "conv2d", "scan", "mean", "transpose")["source"]
    key = rng.choice([key for key in ("input", "u", "delta", "B", "C") if key in source])
    source[key] = rng.choice(list(artifact.config["program"]["tensors"]))


@mutation(2)
def shapes(artifact: Artifact, rng: random.Random) -> None:
    """Changes one number of rows, or one width, everywhere it occurs."""
    program = artifact.config["program"]
    key = rng.choice(["rows", "width"])
    old = rng.choice(list(program["tensors"].values()))[key]
    new = rng.choice([old + 1, old * 2, 1, 1 << 20, 1 << 12])
    for owner in (*program["tensors"].values(), *program["operations"]):
        if owner[key] == old:
            owner[key] = new


@mutation(1)
def many_tensors(artifact: Artifact, rng: random.Random) -> None:
    """Adds forty tensors that all stay in memory until one operation reads them."""
    program = artifact.config["program"]
    rows, size = rng.choice([1 << 20, 1 << 10]), program["channels"] * program["size"] ** 2
    patches = {"kind": "patches", "patch": program["size"], "stride": 1}
    names = [f"x{i}" for i in range(40)]
    program["tensors"] |= {"x": {"rows": 1, "width": size}, "y": {"rows": 1, "width": size}}
    program["tensors"] |= {name: {"rows": rows, "width": size} for name in names}

    def made(name: str, rows: int, source: dict[str, Any], loaded: list[str]) -> dict[str, Any]:
        body: list[dict[str, Any]] = [
            {"op": "load", "dst": dst, "tensor": tensor, "row": 0} for dst, tensor in enumerate(loaded)
        ]
        body.append({"op": "store", "src": 0, "tensor": name})
        width = 0 if source["kind"] == "rows" else size
        return {"name": name, "rows": rows, "width": width, "source": source, "body": body}

    added = [made("x", 1, patches, []), *(made(name, rows, {"kind": "rows"}, ["x"]) for name in names)]
    program["operations"] = [*added, made("y", 1, {"kind": "rows"}, names), *program["operations"]]


# --- quantizers


@mutation(5)
def quantizers(artifact: Artifact, rng: random.Random) -> None:
    sites = artifact.config["sites"]
    name, other = rng.choice(list(sites)), rng.choice(list(sites))
    record = sites[name]
    spec = record["quantizer"]["spec"]
    change = rng.randrange(9)
    if change == 0:
        spec["bits"] = rng.choice([2, 3, 4, 6, 8])
    elif change == 1:
        key = rng.choice(["symmetric", "signed", "narrow"])
        spec[key] = not spec.get(key, key != "narrow")
    elif change == 2:
        record["quantizer"]["axis"] = rng.choice([None, 0, -1, -2])
    elif change == 3:
        record["quantizer"]["read_quantized"] = rng.choice([True, False, None])
    elif change == 4:
        sites[name], sites[other] = sites[other], sites[name]
    elif change == 5:
        sites[name]["quantizer"] = copy.deepcopy(sites[other]["quantizer"])
    elif change == 6:
        record["quantizer"]["kind"] = rng.choice(["quantizer", "rotated", "state"])
    elif change == 7:
        codes = rng.choice([site["codes"] for site in sites.values() if "codes" in site])
        key = rng.choice(["bits", "offset"])
        codes[key] = rng.choice([2, 4, 8]) if key == "bits" else rng.choice([0, 1, 7, 8, 128])
    else:
        del sites[name]


@mutation(2)
def bits_everywhere(artifact: Artifact, rng: random.Random) -> None:
    """Changes a weight's bits in its spec and in the record of its codes alike, but not the codes themselves."""
    weight = rng.choice([site for site in artifact.config["sites"].values() if "codes" in site])
    bits = rng.choice([2, 4, 8])
    weight["quantizer"]["spec"]["bits"] = weight["codes"]["bits"] = bits
    weight["codes"]["offset"] = 1 << (bits - 1)


# --- tensors


def tensor(artifact: Artifact, rng: random.Random) -> str:
    return rng.choice(list(artifact.tensors))


@mutation(6)
def values(artifact: Artifact, rng: random.Random) -> None:
    """Changes one value of a tensor, or all of them."""
    name = tensor(artifact, rng)
    x = artifact.tensors[name]
    place = rng.randrange(x.size) if rng.random() < 0.7 else slice(None)
    flat = x.reshape(-1)
    if x.dtype.kind == "f":
        exact = [0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, 1e-38, 1e-45, np.nan, np.inf, 65504.0, 1e4]
        with np.errstate(all="ignore"):
            flat[place] = rng.choice([*exact, *(flat[place] * x.dtype.type(f) for f in (2, 0.5, -1, 1000, 1e-3))])
    else:
        flat[place] = rng.choice([0, 1, 127, 128, 255]) if x.dtype == np.uint8 else rng.choice([-1, 0, 300, 32767])


@mutation(4)
def forms(artifact: Artifact, rng: random.Random) -> None:
    """Gives a tensor another dtype, shape or name, swaps two tensors, or deletes one."""
    name, other = tensor(artifact, rng), tensor(artifact, rng)
    tensors = artifact.tensors
    x = tensors[name]
    change = rng.randrange(7)
    if change == 0:
        tensors[name] = x.astype(rng.choice([np.float32, np.float16, np.uint8, np.int16, np.int64]))
    elif change == 1:
        tensors[name] = x.reshape(rng.choice([(-1,), (1, *x.shape), (*x.shape, 1), x.shape[::-1]]))
    elif change == 2:
        tensors[name] = x[: rng.randrange(len(x))]
    elif change == 3:
        tensors[name] = np.concatenate([x, x])
    elif change == 4:
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif change == 5:
        del tensors[name]
    else:
        tensors[rng.choice(["extra", f"{name}.scale", other + ".zero_point"])] = x.copy()


@mutation(2)
def parts_of_a_site(artifact: Artifact, rng: random.Random) -> None:
    """Adds a part to a site, or replaces it: a zero point, groups, divisors, a table."""
    site = rng.choice(list(artifact.config["sites"]))
    scale = artifact.tensors[f"{site}.scale"]
    part = rng.choice(["zero_point", "group", "smooth", "table", "divisor"])
    size = rng.choice([scale.size, 1, 16, 32])
    made = {
        "zero_point": np.full(scale.size, rng.choice([0, 3, 8, 20000]), np.int16),
        "group": np.zeros(size, np.uint8),
        "smooth": np.full(size, 1.5, np.float32),
        "table": np.linspace(-1, 1, rng.choice([2, 15, 16, 300])).astype(np.float32),
        "divisor": np.full(size, rng.choice([0.0, 2.0]), np.float32),
    }
    artifact.tensors[f"{site}.{part}"] = made[part]
