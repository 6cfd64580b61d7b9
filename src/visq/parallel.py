"""Several processes on one job, started by torchrun: `torchrun --nproc-per-node N -m visq.cli quantize ...`.

Every rank runs the same program. A pass over data goes through `share`, which gives each rank every world-th batch.
What a batch adds to a statistic goes through `each`, which hands out the contributions of all ranks in the order of the
batches. Sums therefore have the same terms in the same order as in a single process, and results are equal to the last
bit (with the same number of threads a process). Code that does not know this module sees all data on every rank, which
is slower and equally right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from visq.device import CPU
from visq.errors import VisqError

T = TypeVar("T")

#: The environment variable with the seconds after which a silent rank is given up. A rank that dies is noticed at once.
TIMEOUT = "VISQ_DISTRIBUTED_TIMEOUT"
_DEFAULT_TIMEOUT = "50"

_sharing = False
_filler = False


def start() -> None:
    """Joins the process group when torchrun started this process; otherwise does nothing.

    Contributions travel through the CPU, by gloo; NCCL is there for tensors that a caller exchanges itself.

    Raises:
        VisqError: the other ranks cannot be reached, or the time to wait for them is no whole number of seconds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    given = os.environ.get(TIMEOUT, _DEFAULT_TIMEOUT)
    if not given.isdecimal() or int(given) < 1:
        raise VisqError(f"{TIMEOUT} must be a whole number of seconds, not {given!r}")
    with _clear_errors():
        dist.init_process_group(backend, timeout=timedelta(seconds=int(given)))


def stop() -> None:
    """Leaves the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process, from 0. Rank 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(items: Sequence[T]) -> Iterator[T]:
    """Yields this rank's items: item `r * world + rank` in round r.

    A rank without an item in the last round gets the first one again as a filler, because all ranks must take part in
    every exchange. `each` drops what a filler contributes, and code that writes asks `filler()`.
    """
    global _sharing, _filler
    if world() == 1:
        yield from items
        return
    try:
        _sharing = True
        for first in range(0, len(items), world()):
            _filler = first + rank() >= len(items)
            yield items[0 if _filler else first + rank()]
    finally:
        _sharing = _filler = False


def filler() -> bool:
    """Returns whether the item at hand only keeps this rank in step with the others."""
    return _filler


def each(contribution: T) -> Iterator[T]:
    """Yields the contributions of all ranks to this round, in the order of their batches; outside `share`, its own.

    All ranks must call it equally often in the same order, which hooks of the same network do.
    """
    if not _sharing:
        yield contribution
        return
    device = next((leaf.device for leaf in tree_leaves(contribution) if isinstance(leaf, Tensor)), CPU)
    for is_filler, value in gather((_filler, moved(contribution, CPU))):
        if not is_filler:
            yield moved(value, device)


def moved(value: T, device: torch.device) -> T:
    """Returns nested tuples with their tensors on a device. Ranks exchange tensors on the CPU: each has its own GPU."""
    result: T = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)
    return result


def gather(value: T) -> list[T]:
    """Returns the value of every rank, on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _clear_errors():
        dist.all_gather_object(values, value)
    return values


def on_rank_zero(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 while the others wait, and returns its result on all.

    Raises:
        VisqError: the one that `function` raised, on all ranks.
    """
    if world() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except VisqError as error:
            outcome[1] = error
    with _clear_errors():
        dist.broadcast_object_list(outcome, src=0)
    result: T
    result, problem = outcome
    if problem is not None:
        raise problem
    return result


def barrier() -> None:
    """Waits for all ranks."""
    gather(None)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turns torch's errors of a broken group into a VisqError that says where to look."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise VisqError(
            f"rank {os.environ.get('RANK')}: another process of this run has ended or does not answer, so this one "
            f"ends too; look for its message above ({' '.join(str(error).split())[:160]}). "
            "A run that is only slow may set "
            f"{TIMEOUT} to more seconds"
        ) from error
