"""The inputs of one stage, batch by batch, on disk: calibration's memory does not grow with the number of images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visq.errors import VisqError


class Stream:
    """A folder of batches; each a tuple of tensors. A stream under construction has the suffix `.part` until `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def create(folder: Path) -> Stream:
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(parents=True)
        return Stream(part)

    def append(self, batch: tuple[Tensor, ...]) -> None:
        path = self.folder / f"{len(self):05d}.safetensors"
        save_file({str(i): tensor.contiguous() for i, tensor in enumerate(batch)}, path)

    def close(self) -> None:
        target = self.folder.with_name(self.folder.name.removesuffix(".part"))
        os.replace(self.folder, target)
        self.folder = target

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.safetensors")))

    def batches(self, images: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """All batches, or as many as hold the first `images` images (the last one cut to fit)."""
        left = images
        for path in sorted(self.folder.glob("*.safetensors")):
            if left is not None and left <= 0:
                return
            try:
                tensors = load_file(path)
            except Exception as error:
                raise VisqError(f"calibration state {path} is damaged; delete {path.parent.parent} and start again") from error
            batch = tuple(tensors[str(i)] for i in range(len(tensors)))
            if left is not None:
                batch = tuple(tensor[:left] for tensor in batch)
                left -= batch[0].shape[0]
            yield batch


def check_finite(batch: tuple[Tensor, ...], where: str) -> None:
    for tensor in batch:
        if not torch.isfinite(tensor).all():
            raise VisqError(f"the FP32 model gives NaN or Inf in {where} on a calibration image; check the checkpoint and the images")
