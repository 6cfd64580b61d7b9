from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visq.analysis import evaluate, mcnemar
from visq.analysis.significance import binomial_two_sided
from visq.data import Dataset, open_dataset
from visq.errors import VisqError
from visq.models import VisionMamba, create_model
from visq.pipeline.outputs import fp32_outputs


def test_counts_are_those_of_a_plain_loop(model: VisionMamba, images: Dataset) -> None:
    result = evaluate(model, images, batch_size=5)
    x, labels = next(images.batches(len(images)))
    logits = model(x)
    predictions = logits.argmax(1)
    np.testing.assert_array_equal(result.predictions, predictions.numpy())
    np.testing.assert_array_equal(result.labels, labels.numpy())
    assert result.n == 24 and result.top5 == 100.0
    assert result.top1 == pytest.approx(100 * (predictions == labels).float().mean().item())
    assert 0 < result.top1 < 100
    assert result.images_per_second == pytest.approx(24 / result.seconds)


def test_top5_counts_the_five_best(images: Dataset) -> None:
    model = create_model("vim", image_size=16, patch_size=4, channels=1, embed_dim=16, depth=1, num_classes=20).eval()
    model.head.weight.data.zero_()
    model.head.bias.data = torch.arange(20.0, 0.0, -1.0)
    model.head.bias.data[0] = 15.5  # class 0 comes fifth
    model.card = replace(model.card, classes=tuple(map(str, range(20))))
    result = evaluate(model, images)
    assert result.top5 == 100.0 and result.top1 == 25.0


def test_limit_is_spread_and_repeatable(model: VisionMamba, images: Dataset) -> None:
    first, second = evaluate(model, images, limit=8), evaluate(model, images, limit=8)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.n == 8 and len(set(first.labels.tolist())) > 1
    assert evaluate(model, images, limit=1000).n == 24


def test_bad_logits_name_the_stage(model: VisionMamba, images: Dataset) -> None:
    model.layers[1].mixer.out_proj.weight[0, 0] = float("nan")
    with pytest.raises(VisqError, match=r"NaN or Inf.*layers\.1"):
        evaluate(model, images)
    with pytest.raises(VisqError, match=r"FP32 model gives NaN or Inf, first in stage layers\.1"):
        fp32_outputs(model, images)


def test_labels_must_be_the_models(model: VisionMamba, image_folder: Path) -> None:
    unlabelled = open_dataset(str(image_folder / "class0"), model.card.preprocess, split="test")
    with pytest.raises(VisqError, match="no labels"):
        evaluate(model, unlabelled)
    other = create_model("vim", image_size=16, patch_size=4, channels=1, embed_dim=16, depth=1, num_classes=9).eval()
    with pytest.raises(VisqError, match="4 classes, the model 9 outputs"):
        evaluate(other, open_dataset(str(image_folder), other.card.preprocess, split="test"))


def test_unreadable_images_are_counted(model: VisionMamba, image_folder: Path, tmp_path: Path) -> None:
    for label in ("a", "b", "c", "d"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "good.png").write_bytes((image_folder / "class0/0.png").read_bytes())
    (tmp_path / "a" / "bad.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=r"a/bad\.png"):
        result = evaluate(model, open_dataset(str(tmp_path), model.card.preprocess, split="test"))
    assert result.n == 4 and result.skipped == ("a/bad.png",)


def test_mcnemar_on_known_counts() -> None:
    first = np.array([True] * 10 + [False] * 4)
    second = np.array([True] * 5 + [False] * 5 + [True] + [False] * 3)
    paired = mcnemar(first, second)
    assert (paired.lost, paired.gained) == (5, 1)
    assert paired.p_value == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(first, first).p_value == 1.0
    assert binomial_two_sided(0, 10_000) == 0.0
    assert binomial_two_sided(5_000, 10_000) == 1.0
    assert binomial_two_sided(4_900, 10_000) == pytest.approx(0.0466, abs=2e-4)
