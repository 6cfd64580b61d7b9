"""A list of images with labels that decodes on the fly, in a fixed order, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from visq.data.preprocess import Preprocess, UnreadableImage
from visq.data.sources import Record
from visq.errors import VisqError

UNLABELLED = -1


class Dataset:
    """Images, their labels, and the transform that makes them a model's input.

    `labels` holds one class index an image, or -1 where there are no labels (then `classes` is empty).
    `skipped` names the images that could not be decoded so far.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[Record],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocess: Preprocess,
        *,
        strict: bool = False,
        threads: int | None = None,
    ) -> None:
        if not records:
            raise VisqError(f"{name}: no images")
        self.name = name
        self.labels = list(labels)
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self.strict = strict
        self._records = list(records)
        self._threads = threads or min(4, os.cpu_count() or 1)
        self._skipped: dict[int, str] = {}  # by index, so that a second pass names nothing twice

    def __len__(self) -> int:
        return len(self._records)

    @property
    def labelled(self) -> bool:
        """Say whether the images have labels."""
        return bool(self.classes)

    @property
    def skipped(self) -> list[str]:
        """Return the names of the images that could not be decoded so far."""
        return list(self._skipped.values())

    def fingerprint(self) -> str:
        """Return a sha256 over names, sizes, labels and preprocessing; no image file is read for it."""
        digest = hashlib.sha256(json.dumps(self.preprocess.to_dict(), sort_keys=True).encode())
        digest.update(json.dumps(self.classes).encode())
        for source in {id(record.source): record.source for record in self._records}.values():
            digest.update(source.identity().encode())
        for record, label in zip(self._records, self.labels, strict=True):
            digest.update(f"{record.name}\0{record.size}\0{label}\n".encode())
        return digest.hexdigest()

    def subset(self, n: int, seed: int) -> Dataset:
        """Return `n` images chosen at random by `seed`, in their original order.

        Raises VisqError when `n` is not in 1..len(self).
        """
        if n < 1:
            raise VisqError(f"{self.name}: {n} images were asked for, at least 1 is needed ({len(self)} are there)")
        if n > len(self):
            raise VisqError(f"{self.name}: {n} images were asked for but only {len(self)} are there")
        return self.select(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)).tolist())

    def select(self, indices: Sequence[int]) -> Dataset:
        """Return the images at `indices`, in that order."""
        records, labels = [self._records[i] for i in indices], [self.labels[i] for i in indices]
        return Dataset(
            self.name, records, labels, self.classes, self.preprocess, strict=self.strict, threads=self._threads
        )

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield normalized images [B, channels, H, W] float32 and labels [B] int64 in a fixed order.

        Every batch but the last has `batch_size` images, also after an image was skipped. Raises VisqError for an
        unreadable image when `strict`, and at the end when not one image could be read.
        """
        for pixels, labels in self.pixel_batches(batch_size):
            yield self.preprocess.normalize(pixels), labels

    def pixel_batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield what `batches` does before normalization: uint8 [B, channels, H, W] and labels [B] int64."""
        if batch_size < 1:
            raise VisqError(f"batch size must be at least 1, not {batch_size}")
        size, channels = self.preprocess.image_size, self.preprocess.channels
        images: list[np.ndarray] = []
        labels: list[int] = []
        count = 0
        for pixels, label in self._decoded(lookahead=max(batch_size, 2 * self._threads)):
            images.append(pixels)
            labels.append(label)
            count += 1
            if len(images) == batch_size:
                yield torch.from_numpy(np.stack(images)), torch.tensor(labels)
                images, labels = [], []
        if images:
            yield torch.from_numpy(np.stack(images)), torch.tensor(labels)
        if count == 0:
            raise VisqError(f"{self.name}: none of {len(self)} images of {channels}x{size}x{size} could be read")

    def _decoded(self, lookahead: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yield pixels and label of every readable image in order, decoding at most `lookahead` images ahead."""
        pool = ThreadPoolExecutor(self._threads)
        pending: deque[tuple[int, Future[np.ndarray]]] = deque()
        try:
            for index in range(len(self)):
                pending.append((index, pool.submit(self._decode, index)))
                if len(pending) >= lookahead:
                    yield from self._finish(*pending.popleft())
            while pending:
                yield from self._finish(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, index: int) -> np.ndarray:
        record = self._records[index]
        return self.preprocess.pixels(record.source.read(record.key))

    def _finish(self, index: int, future: Future[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the decoded image, or nothing when it is unreadable."""
        try:
            yield future.result(), self.labels[index]
        except (UnreadableImage, OSError) as error:
            name = self._records[index].name
            if self.strict:
                raise VisqError(f"{self.name}: {name} cannot be read ({error})") from error
            if index not in self._skipped:
                self._skipped[index] = name
                warnings.warn(f"{self.name}: {name} cannot be read and is skipped ({error})", stacklevel=4)
