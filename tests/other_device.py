"""A device to test on where there is no GPU. Its tensors refuse tensors of the CPU, as those of CUDA do.

Inside `other_device()`, tensors made on or moved to `DEVICE` are wrappers around tensors of the CPU, which compute. A
mix of devices raises RuntimeError where CUDA would. Ops of visq run their CPU kernels. A machine with a GPU takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HAS_GPU = torch.cuda.is_available()
#: PyTorch knows `lazy` and has no kernel for it; autograd runs it on the thread of the CPU.
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("lazy")

#: Ops whose indices or sources may be on the CPU, on CUDA too.
_TAKES_BOTH = {"index", "index_put", "index_put_", "_index_put_impl_", "copy_", "_to_copy"}


class Elsewhere(Tensor):
    """A tensor that says it is on `DEVICE`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @property
    def data(self) -> Tensor:
        return Elsewhere(self.inner)

    @data.setter
    def data(self, value: Elsewhere) -> None:
        assert isinstance(value, Elsewhere), "a parameter on another device was given data of the CPU"
        self.inner = value.inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an op on the CPU, and gives its results the device they would have."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if not isinstance(x, Elsewhere)]
    name = func._schema.name.partition("::")[2]
    if len(here) < len(tensors) and name not in _TAKES_BOTH:
        scalars_only = torch.Tag.pointwise in func.tags and all(x.dim() == 0 for x in here)
        if here and not scalars_only:
            raise RuntimeError(f"{func} got tensors on {DEVICE} and of shapes {[list(x.shape) for x in here]} on cpu")
    asked = kwargs.get("device")
    elsewhere = len(here) < len(tensors) if asked is None else torch.device(asked).type == DEVICE.type
    if name in ("copy_", "index"):
        elsewhere = isinstance(args[0], Elsewhere)
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    if asked is not None:
        inner_kwargs["device"] = "cpu"
    out = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable and isinstance(out, Tensor) and isinstance(args[0], Tensor):
        return args[0]
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, out) if elsewhere else out


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Yields a device that is not the CPU, usable inside the `with` block."""
    if HAS_GPU:
        yield DEVICE
        return
    autocast = torch.is_autocast_enabled
    with mock.patch("torch.is_autocast_enabled", lambda kind="cpu": kind != DEVICE.type and autocast(kind)), _Mode():
        yield DEVICE
