"""The inputs of one stage, batch by batch, on disk: calibration's memory does not grow with the number of images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from visq import parallel
from visq.device import CPU
from visq.errors import VisqError


class Stream:
    """A folder of batches; each a tuple of tensors. A stream under construction has the suffix `.part` until `close`.

    Several processes share the folder: each appends the batches it made, rank 0 creates, renames and removes.

    Arguments:
        device: where batches are read to; they may be written from any.
    """

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        self.folder, self.device = folder, device

    @staticmethod
    def create(folder: Path, device: torch.device = CPU) -> Stream:
        part = folder.with_name(folder.name + ".part")

        def make() -> None:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            part.mkdir(parents=True)

        parallel.on_rank_zero(make)
        return Stream(part, device)

    def append(self, batch: tuple[Tensor, ...], index: int | None = None) -> None:
        """Write batch number `index`, by default the next one."""
        path = self.folder / f"{len(self) if index is None else index:05d}.safetensors"
        save_file({str(i): tensor.cpu().contiguous() for i, tensor in enumerate(batch)}, path)

    def close(self) -> None:
        target = self.folder.with_name(self.folder.name.removesuffix(".part"))
        parallel.barrier()
        parallel.on_rank_zero(lambda: os.replace(self.folder, target))
        self.folder = target

    def remove(self) -> None:
        parallel.barrier()
        parallel.on_rank_zero(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.safetensors")))

    def batches(self, images: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """All batches, or as many as hold the first `images` images (the last one cut to fit)."""
        for path, rows in self._plan(images):
            yield self._on_device(_load(path, rows))

    def share(self, images: int | None = None) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """This process' share of `batches` (see `visq.parallel.share`), each with its number."""
        for index, (path, rows) in parallel.share(list(enumerate(self._plan(images)))):
            yield index, self._on_device(_load(path, rows))

    def _on_device(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.device) for tensor in batch)

    def _plan(self, images: int | None) -> list[tuple[Path, int | None]]:
        """The files to read, and how many images of each; all batches but the last are of one size."""
        paths = sorted(self.folder.glob("*.safetensors"))
        if images is None or not paths:
            return [(path, None) for path in paths]
        size = _load(paths[0], None)[0].shape[0]
        needed = paths[: -(-images // size)]
        return [(path, images - i * size) for i, path in enumerate(needed)]


def _load(path: Path, rows: int | None) -> tuple[Tensor, ...]:
    try:
        # Read by Python, which Ctrl-C ends as such: inside load_file it once looked like a damaged file.
        tensors = load(path.read_bytes())
    except Exception as error:
        raise VisqError(f"calibration state {path} is damaged; delete {path.parent.parent} and start again") from error
    return tuple(tensors[str(i)][:rows] for i in range(len(tensors)))


def check_finite(batch: tuple[Tensor, ...], where: str) -> None:
    for tensor in batch:
        if not torch.isfinite(tensor).all():
            raise VisqError(
                f"the FP32 model gives NaN or Inf in {where} on a calibration image; "
                "check the checkpoint and the images"
            )
