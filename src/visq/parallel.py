"""Several processes on one job, started by torchrun: `torchrun --nproc-per-node N -m visq.cli quantize ...`.

Every rank runs the same program. A pass over data goes through `share`: each rank takes every world-th batch. What a
batch adds to a statistic goes through `each`, which hands out the contributions of all ranks in the order of the
batches. Sums are therefore made of the same terms in the same order as in a single process, and the results are
equal to the last bit (given the same number of threads a process). Code that knows nothing of this module sees all
data on every rank, which is slower but equally right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from visq.errors import VisqError

T = TypeVar("T")

#: Seconds after which a silent rank is given up; a rank that dies is noticed at once.
TIMEOUT = "VISQ_DISTRIBUTED_TIMEOUT"

_sharing = False
_ghost = False


def start() -> None:
    """Joins the process group when torchrun started this process; otherwise does nothing. CPU tensors travel by gloo,
    CUDA tensors by NCCL.

    Raises:
        VisqError: the other ranks cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _clear_errors():
        dist.init_process_group(backend, timeout=timedelta(seconds=int(os.environ.get(TIMEOUT, "50"))))


def stop() -> None:
    """Leaves the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; rank 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(items: Sequence[T]) -> Iterator[T]:
    """This rank's items: item `r * world + rank` in round r.

    A rank that has no item in the last round repeats the first one as a ghost, so that all ranks take part in every
    exchange; `each` drops what ghosts contribute, and `ghost()` says so to anyone who writes.
    """
    global _sharing, _ghost
    if world() == 1:
        yield from items
        return
    try:
        _sharing = True
        for first in range(0, len(items), world()):
            _ghost = first + rank() >= len(items)
            yield items[0 if _ghost else first + rank()]
    finally:
        _sharing = _ghost = False


def ghost() -> bool:
    """Whether the item at hand only keeps this rank in step with the others."""
    return _ghost


def each(contribution: T) -> Iterator[T]:
    """The contributions of all ranks to this round, in the order of their batches; outside `share`, the own one alone.

    All ranks must call it equally often in the same order, which hooks of the same network do.
    """
    if not _sharing:
        yield contribution
        return
    for is_ghost, value in gather((_ghost, contribution)):
        if not is_ghost:
            yield value


def gather(value: T) -> list[T]:
    """The value of every rank, on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _clear_errors():
        dist.all_gather_object(values, value)
    return values


def on_rank_zero(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 alone, while the others wait; returns its result, or raises its VisqError,
    everywhere."""
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
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise VisqError(
            f"rank {os.environ.get('RANK')}: another process of this run has ended or does not answer, so this one "
            f"ends too; look for its message above ({' '.join(str(error).split())[:160]}). "
            "A run that is only slow may set "
            f"{TIMEOUT} to more seconds"
        ) from error
