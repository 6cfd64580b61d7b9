"""Tests the dispatcher: its choice of kernel, its description of the choice, and its use from threads and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from tests.ops.helpers import ISAS, needs_cpp, scan_inputs, torch_threads
from visq import ops
from visq.errors import VisqError
from visq.native import extension
from visq.native.extension import has_engine_isa
from visq.ops import _native, backends, selective_scan
from visq.ops._scan import ScanInputs

OPS = {
    "exact",
    "fake_quantize",
    "fixed_scan",
    "causal_conv1d",
    "quantized_scan",
    "scan_states",
    "search_state_scales",
    "selective_scan",
    "similarity_sums",
}


def test_describe_names_every_op() -> None:
    described = backends.describe()
    assert set(described) >= OPS
    assert set(described) - OPS == {f"{op}_backward" for op in ("causal_conv1d", "quantized_scan", "selective_scan")}


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
def test_describe_names_the_kernel(isa: str) -> None:
    with _native.use_isa(isa):
        assert backends.describe()["selective_scan"].kernel == f"cpp-{isa}"


def test_describe_says_why_not() -> None:
    choice = backends.describe(device="meta")["selective_scan"]
    assert choice.kernel == "naive"
    assert dict(choice.not_used)["cpp"] == "runs on cpu only, not on meta"


def test_forcing_an_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISQ_OPS", "naive")
    assert backends.describe()["selective_scan"].kernel == "naive"
    monkeypatch.setenv("VISQ_OPS", "fortran")
    with pytest.raises(
        VisqError, match="VISQ_OPS='fortran' is not an implementation of selective_scan; known: cpp, naive"
    ):
        selective_scan(*scan_inputs(1, 2, 3, 1))


def test_missing_extension_falls_back_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_C", None)
    monkeypatch.setattr(extension, "MISSING", "the C++ extension visq._C is not installed")
    monkeypatch.setattr(backends, "_warned", set())
    inputs = scan_inputs(1, 2, 3, 1)
    with pytest.warns(RuntimeWarning, match="selective_scan runs as a slow loop .*not installed"):
        selective_scan(*inputs)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selective_scan(*inputs)
    with pytest.raises(VisqError, match="'avx2' is not available here; available: none"):
        _native.set_isa("avx2")


@needs_cpp
def test_forced_isa_and_its_error() -> None:
    code = "from visq.ops import backends; print(backends.describe()['selective_scan'].kernel)"
    run = lambda isa: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code], env={**os.environ, "VISQ_ISA": isa}, capture_output=True, text=True
    )
    assert run("scalar").stdout.strip() == "cpp-scalar"
    for isa in ("avx512vnni", "amx", "amx-emulated"):  # only the engine has these; ops use AVX-512
        assert not has_engine_isa(isa) or run(isa).stdout.strip() == "cpp-avx512"
    for isa in ("mmx", *(isa for isa in ("avx512vnni", "amx") if not has_engine_isa(isa))):
        bad = run(isa)
        assert bad.returncode != 0 and f"instruction set '{isa}' is not available here" in bad.stderr


@needs_cpp
def test_calls_from_several_threads() -> None:
    inputs = scan_inputs(4, 20, 70, 4)
    expected = selective_scan(*inputs)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(selective_scan(*inputs), expected):
                wrong.append(index)

    with torch_threads(3):
        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong


@needs_cpp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_survives_fork() -> None:
    inputs = scan_inputs(4, 20, 70, 4)
    with torch_threads(2):
        expected = selective_scan(*inputs)  # creates the thread pool before the fork
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(selective_scan(*inputs), expected) else 1)
        _, status = os.waitpid(child, 0)
    assert status == 0


@pytest.fixture
def other_kernel() -> Iterator[list[tuple[int, ...]]]:
    """Registers another package's kernel, faster than C++, for at most 8 channels. Yields the shapes it ran on."""
    shapes: list[tuple[int, ...]] = []

    def check(inputs: ScanInputs | None = None, *others: object) -> tuple[bool, str]:
        if inputs is not None and inputs.u.shape[-1] > 8:
            return False, f"takes at most 8 channels, not {inputs.u.shape[-1]}"
        return True, ""

    @backends.register("selective_scan", "other", priority=20, devices=("cpu",), check=check)
    def forward(inputs: ScanInputs) -> torch.Tensor:
        shapes.append(tuple(inputs.u.shape))
        return backends.implementation("selective_scan", "naive")(inputs)

    yield shapes
    backends.unregister("selective_scan", "other")


def test_a_kernel_from_outside_runs_where_its_check_lets_it(other_kernel: list[tuple[int, ...]]) -> None:
    assert backends.describe()["selective_scan"].kernel == "other"
    with backends.recorded() as counted:
        selective_scan(*scan_inputs(1, 2, 8, 1))
        selective_scan(*scan_inputs(1, 2, 9, 1))
    assert other_kernel == [(1, 2, 8)]
    assert counted["selective_scan", "other"] == 1 and sum(counted.values()) == 2


def test_a_name_is_registered_once(other_kernel: list[tuple[int, ...]]) -> None:
    with pytest.raises(VisqError, match="op selective_scan has an implementation 'other' already"):
        backends.register("selective_scan", "other")(lambda inputs: inputs.u)


def test_exact_arithmetic_is_refused_where_it_has_no_kernel() -> None:
    """No device falls back silently to the oracle of the engine's bits, a slow loop on the host."""
    assert backends.describe(device="xpu")["exact"].kernel == "none"
    assert not backends.usable("fixed_scan", "xpu")
    assert backends.describe(device="cuda")["exact"].kernel == "torch"
    assert backends.describe(device="cuda")["fixed_scan"].kernel in ("torch", "triton")
    with pytest.raises(VisqError, match=r"no implementation of exact can run on meta .*not on meta"):
        ops.exact.unary("silu", torch.empty(1, 2, 3, device="meta"))
