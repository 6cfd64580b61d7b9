"""Whether calibration images are enough, and different enough, for what a recipe estimates from them.

The numbers were measured with images of the training set that took no part in calibration (docs/methods/visq.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor

from visq.recipes import Recipe

#: Images that bring a recipe with scales for channels, tokens or steps within 0.3 points of what 256 images give.
ENOUGH_FOR_FINE_SCALES = 8
#: The same for recipes whose activations have one scale, or a few, each: one image loses nothing.
ENOUGH_FOR_ONE_SCALE = 1
#: Learners fit more parameters than there are scales; this number is not measured.
ENOUGH_TO_LEARN = 64
#: Learners that only average, over tokens and images.
_AVERAGES = ("bias_correction",)
#: An image is constant when its values differ by less than this; a step of 8 bits is 0.0078 after [-1, 1].
_CONSTANT = 1e-3


class Sample:
    """Counts calibration images: all, different ones, constant ones."""

    def __init__(self) -> None:
        self.images = self.constant = self.repeated = 0
        self._seen: set[bytes] = set()

    def add(self, images: Tensor) -> None:
        """Counts a batch [B, channels, H, W]."""
        for image in images:
            self.images += 1
            digest = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
            if bool(image.max() - image.min() < _CONSTANT):
                self.constant += 1
            elif digest in self._seen:
                self.repeated += 1
            self._seen.add(digest)

    @property
    def different(self) -> int:
        """Returns how many different images there are, constant ones apart."""
        return self.images - self.constant - self.repeated

    def warnings(self, recipe: Recipe) -> list[str]:
        """Returns one sentence for each thing that is wrong with the sample, best none."""
        if not recipe.scope.sites:
            return []
        enough, why = needed(recipe)
        found = []
        if self.constant:
            found.append(
                f"{self.constant} of {self.images} calibration images are one colour all over, which shows no scale "
                "anything; take pictures like those the network will see"
            )
        if self.repeated:
            found.append(
                f"{self.repeated} of {self.images} calibration images are copies of others, which adds nothing; "
                "take different ones"
            )
        if self.different < enough:
            found.append(
                f"{self.different} different calibration image{'' if self.different == 1 else 's'} will not do for "
                f"recipe {recipe.name}, which {why}; {enough} would, 256 is usual"
            )
        return found


def needed(recipe: Recipe) -> tuple[int, str]:
    """Returns how many different images a recipe wants, and what of it wants them."""
    if any(learner.name not in _AVERAGES for learner in recipe.scope.learners):
        return ENOUGH_TO_LEARN, "learns from them"
    rules = (rule for rule in recipe.scope.sites if rule.bits in ("activation", "state"))
    kinds = {rule.granularity for rule in rules if isinstance(rule.granularity, str)}
    if kinds & {"token", "step", "channel"}:
        return ENOUGH_FOR_FINE_SCALES, "has scales for channels, tokens or steps"
    return ENOUGH_FOR_ONE_SCALE, "has one scale, or a few, for each tensor"


def sample_warnings(images: Iterable[Tensor], recipe: Recipe) -> list[str]:
    """Returns the sentences of `Sample.warnings` for batches of calibration images."""
    sample = Sample()
    for batch in images:
        sample.add(batch)
    return sample.warnings(recipe)
