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

from visq.data.decode import UnreadableImage
from visq.data.preprocess import Prepared, Preprocess
from visq.data.records import Record
from visq.errors import VisqError

_TURNED = "has an EXIF orientation, which is ignored here as it is where published numbers come from"
_TRANSPARENT = "has transparent pixels, which are shown over white"


class Dataset:
    """Images, their labels, and the transform that makes them a model's input.

    Attributes:
        labels: one class index an image, or -1 where there are no labels.
        classes: the class names that labels index; empty where there are no labels.
        skipped: names of the images that could not be decoded so far.
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
        self._skipped: dict[int, str] = {}  # by record, so that a second pass names nothing twice
        self._said: set[str] = set()
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        labels = f"{len(self.classes)} classes" if self.labelled else "without labels"
        return f"<visq.Dataset {self.name}: {len(self)} images, {labels}>"

    @property
    def labelled(self) -> bool:
        """Returns whether the images have labels."""
        return bool(self.classes)

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be decoded so far."""
        return list(self._skipped.values())

    def fingerprint(self) -> str:
        """Returns a sha256 over names, labels, preprocessing and every image's bytes, which are read once for it.

        Equal images under equal names have one fingerprint, whether they lie in a folder or in a tar.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(json.dumps(self.preprocess.to_dict(), sort_keys=True).encode())
            digest.update(json.dumps(self.classes).encode())
            with ThreadPoolExecutor(self._threads) as pool:
                for first in range(0, len(self), 1024):  # a future for each of a million images would fill memory
                    block = range(first, min(first + 1024, len(self)))
                    for index, content in zip(block, pool.map(self.content, block), strict=True):
                        name = self._records[index].name.encode(errors="surrogateescape")
                        digest.update(name + f"\0{self.labels[index]}\0{content}\n".encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def content(self, index: int) -> str:
        """Returns the sha256 of an image's bytes, or that it cannot be read."""
        record = self._records[index]
        try:
            data = record.source.read(record.key)
        except OSError:
            return "unreadable"
        if isinstance(data, np.ndarray):
            return hashlib.sha256(str(data.shape).encode() + data.tobytes()).hexdigest()
        return hashlib.sha256(data).hexdigest()

    def subset(self, n: int, seed: int) -> Dataset:
        """Returns `n` images chosen at random by `seed`, in their original order; raises VisqError as `drawn` does."""
        return self.select(self.drawn(n, seed))

    def drawn(self, n: int, seed: int) -> list[int]:
        """Returns the indices of `n` images chosen at random by `seed`, ascending.

        Raises:
            VisqError: `n` is not in 1..len(self).
        """
        if n < 1:
            raise VisqError(f"{self.name}: {n} images were asked for, at least 1 is needed ({len(self)} are there)")
        if n > len(self):
            raise VisqError(f"{self.name}: {n} images were asked for but only {len(self)} are there; ask for fewer")
        indices: list[int] = np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)).tolist()
        return indices

    def select(self, indices: Sequence[int]) -> Dataset:
        """Returns the images at `indices`, in that order."""
        records, labels = [self._records[i] for i in indices], [self.labels[i] for i in indices]
        return type(self)(
            self.name, records, labels, self.classes, self.preprocess, strict=self.strict, threads=self._threads
        )

    def shuffled(self, seed: int) -> Dataset:
        """Returns all images in an order drawn by `seed`; what one of the two skips, the other has skipped too."""
        found = self.select(np.random.default_rng([seed, 2]).permutation(len(self)).tolist())
        found._skipped, found._said = self._skipped, self._said
        return found

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields normalized images [B, channels, H, W] float32 and labels [B] int64 in a fixed order.

        Every batch but the last has `batch_size` images, also after an image was skipped.

        Raises:
            VisqError: an image cannot be read and the data set is strict; at the end, when no image could be read.
        """
        for pixels, labels in self.pixel_batches(batch_size):
            yield self.preprocess.normalize(pixels), labels

    def pixel_batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields what `batches` does before normalization: uint8 [B, channels, H, W] and labels [B] int64."""
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
        """Yields pixels and label of every readable image in order, decoding at most `lookahead` images ahead."""
        pool = ThreadPoolExecutor(self._threads)
        pending: deque[tuple[int, Future[Prepared]]] = deque()
        try:
            for index in range(len(self)):
                pending.append((index, pool.submit(self._decode, index)))
                if len(pending) >= lookahead:
                    yield from self._finish(*pending.popleft())
            while pending:
                yield from self._finish(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, index: int) -> Prepared:
        record = self._records[index]
        return self.preprocess.prepare(record.source.read(record.key))

    def _finish(self, index: int, future: Future[Prepared]) -> Iterator[tuple[np.ndarray, int]]:
        """Yields the decoded image, or nothing when it is unreadable."""
        name = self._records[index].name
        try:
            found = future.result()
        except (UnreadableImage, OSError, MemoryError) as error:
            why = error if str(error) else type(error).__name__
            if self.strict:
                raise VisqError(f"{self.name}: {name} cannot be read ({why})") from error
            if id(self._records[index]) not in self._skipped:
                self._skipped[id(self._records[index])] = name
                warnings.warn(f"{self.name}: {name} cannot be read and is skipped ({why})", stacklevel=4)
            return
        if found.turned:
            self._say_once(name, _TURNED)
        if found.transparent:
            self._say_once(name, _TRANSPARENT)
        yield found.pixels, self.labels[index]

    def _say_once(self, name: str, what: str) -> None:
        """Warns about the first image of its kind."""
        if what not in self._said:
            self._said.add(what)
            warnings.warn(f"{self.name}: {name} {what} (said once, others may follow)", stacklevel=5)


def mixed(dataset: Dataset, seen: int | None, seed: int) -> Dataset:
    """Returns the images in a drawn order where only the first `seen` of them are looked at; None looks at all.

    Files lie in the order of their classes, so that the first images of a set would show a few classes, or one.
    Unlike a subset, the order has more images to go on with where one cannot be read.
    """
    return dataset if seen is None or seen >= len(dataset) else dataset.shuffled(seed)
