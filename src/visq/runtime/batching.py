"""Runs the images of many callers together."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

import numpy as np

from visq.errors import VisqError
from visq.integer.arithmetic import Floats
from visq.runtime.predicting import ImageLike, Prediction, Predictor


class Batching:
    """Collects single images from many threads and runs them in batches, on one thread of its own.

        with engine.batching(batch=16) as requests:
            future = requests.predict("cat.jpg")  # returns at once; any thread may call it
            print(future.result()[0].name)

    A batch runs when it is full, or when its oldest image has waited `delay` seconds. An image's result does not depend
    on its batch.

    Arguments:
        run: images [B, channels, size, size] float32 -> logits [B, classes] float32.
        check: raises VisqError for images that `run` would refuse.
        batch: images that run together, at most.
        delay: seconds that an image waits for others, at most. With 0 a batch is what came while the last one ran.
    """

    def __init__(
        self,
        run: Callable[[Floats], Floats],
        check: Callable[[Floats], object],
        predictor: Predictor,
        *,
        batch: int = 16,
        delay: float = 0.0,
    ) -> None:
        if batch < 1 or not 0 <= delay < float("inf"):
            raise VisqError(f"batching needs batch >= 1 and a finite delay >= 0 seconds, got {batch} and {delay}")
        self.batch, self.delay = batch, delay
        self._run, self._check, self._predictor = run, check, predictor
        self._waiting: deque[tuple[float, Floats, Future[Floats]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="visq-batching", daemon=True)
        self._thread.start()

    def submit(self, image: Floats) -> Future[Floats]:
        """Returns the future logits [classes] float32 of a normalized image [channels, size, size] float32.

        Raises:
            VisqError: the engine would refuse the image, or this object is closed or from before a fork.
        """
        image = np.array(image[None])  # the caller may write into its own
        self._check(image)
        found: Future[Floats] = Future()
        with self._changed:
            if os.getpid() != self._process:
                raise VisqError("this batching was made before a fork, and its thread did not follow; make a new one")
            if self._closed:
                raise VisqError("this batching is closed")
            self._waiting.append((time.monotonic(), image, found))
            self._changed.notify()
        return found

    def predict(self, image: ImageLike, top: int = 5, *, upright: bool = True) -> Future[list[Prediction]]:
        """Returns the future `top` classes of an image, likeliest first. It is decoded here, in the caller's thread.

        Arguments:
            image, upright: as in `Engine.predict`.
        Raises:
            VisqError: the image cannot be read, and as in `submit`.
        """
        found: Future[list[Prediction]] = Future()

        def finish(logits: Future[Floats]) -> None:
            if not found.set_running_or_notify_cancel():
                return
            try:
                found.set_result(self._predictor.named(logits.result()[None], top)[0])
            except BaseException as error:
                found.set_exception(error)

        self.submit(self._predictor.normalized(image, upright)).add_done_callback(finish)
        return found

    def close(self) -> None:
        """Runs what waits, and ends the thread. Nothing can be submitted afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if os.getpid() == self._process:
            self._thread.join()

    def __enter__(self) -> Batching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while block := self._next():
            block = [request for request in block if request[2].set_running_or_notify_cancel()]
            if not block:
                continue
            try:
                logits = self._run(np.concatenate([image for _, image, _ in block]))
            except BaseException as error:
                for _, _, found in block:
                    found.set_exception(error)
                continue
            for row, (_, _, found) in zip(logits, block, strict=True):
                found.set_result(row)

    def _next(self) -> list[tuple[float, Floats, Future[Floats]]]:
        """Waits for a batch and returns it; an empty one when this object is closed and nothing waits."""
        with self._changed:
            while len(self._waiting) < self.batch and not self._closed:
                left = self._waiting[0][0] + self.delay - time.monotonic() if self._waiting else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return [self._waiting.popleft() for _ in range(min(self.batch, len(self._waiting)))]
