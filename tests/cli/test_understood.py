"""What was understood of a model is printed in one line, and what was chosen in its checkpoint in another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Workplace, visq_here
from visq.cli.main import _at_home, run
from visq.cli.options import read_classes
from visq.cli.understood import understood
from visq.errors import VisqError
from visq.models import get_card

TINY = (
    "understood: grey images of 16 x 16, cut from a shorter side of 16 (bicubic); mean 0.5, std 0.5; "
    "patch 4, stride 4, tokens 17; 4 classes (without names)"
)


def lines(text: str, beginning: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(beginning)]


def test_every_family_in_one_line() -> None:
    assert understood(get_card("vim_tiny")) == (
        "understood: RGB images of 224 x 224, cut from a shorter side of 256 (bicubic); mean 0.485 0.456 0.406, "
        "std 0.229 0.224 0.225; patch 16, stride 16, tokens 197; 1000 classes (without names)"
    )
    assert understood(get_card("vmamba_nano_imagenette")).endswith(
        "; 10 classes (n01440764, n02102040, n02979186, ...)"
    )


def test_quantize_eval_and_inspect_print_it(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "artifact"
    quantize = ("quantize", *workplace.model, "--recipe", "minmax-w8a8", "--calib", workplace.images, "--samples", 8)
    assert lines(visq_here(capfd, *quantize, "--out", out), "understood: ") == [TINY]
    assert lines(visq_here(capfd, "inspect", out), "understood: ") == [TINY]
    data = ("--data", workplace.images, "--limit", 4)
    assert lines(visq_here(capfd, "eval", out, *data), "understood: ") == [TINY]
    model = ("eval", "vim", "--checkpoint", workplace.checkpoint)
    assert lines(visq_here(capfd, *model, *data), "understood: ") == [TINY]
    larger = visq_here(capfd, *model, *data, "--image-size", 24)
    assert "grey images of 24 x 24" in lines(larger, "understood: ")[0]
    assert lines(larger, "checkpoint: ") == [
        "checkpoint: the weights were trained for images of 16 pixels and run at 24, as asked: positions were "
        "resampled bicubically from 4 x 4 to 6 x 6"
    ]


def test_where_the_weights_were_found_is_printed(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in load_file(workplace.checkpoint).items()}
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": tensors, "callbacks": {"best": Path("runs/best.ckpt")}, "epoch": 3}, path)
    printed = visq_here(capfd, "eval", "vim", "--checkpoint", path, "--data", workplace.images, "--limit", 4)
    assert lines(printed, "checkpoint: ") == [
        "checkpoint: its weights are those under `state_dict`; the prefix `model.` of all its names was removed"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb c\n", ["a", "b c"]),
        ('["a", "b"]', ["a", "b"]),
        ('{"0": ["n01", "tench"], "1": ["n02", "goldfish"]}', ["tench", "goldfish"]),
        ('{"1": "b", "0": "a"}', ["a", "b"]),
        ('{"a": 0}', "the keys of a JSON object must be 0, 1, 2"),
        ("[" * 9, "cannot be read: .*; give a JSON list or a name a line"),
        (None, "cannot be read: No such file or directory; give a JSON list"),
    ],
)
def test_files_of_class_names(tmp_path: Path, text: str | None, expected: list[str] | str) -> None:
    path = tmp_path / "classes"
    if text is not None:
        path.write_text(text)
    if isinstance(expected, list):
        assert read_classes(path) == expected
    else:
        with pytest.raises(VisqError, match=f"--classes {path}:? {expected}"):
            read_classes(path)


def test_targets_that_are_none(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    for target, message in (
        ("vim_t", "did you mean vim_tiny"),
        (workplace.checkpoint, "is a file; for a checkpoint say"),
    ):
        assert run(["eval", str(target), "--data", str(workplace.images)]) == 1
        assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("~/x", "HOME/x"),
        ("--out=~/x", "HOME/x"),
        ("--mean=0.5", "--mean=0.5"),
        ("a~b", "a~b"),
        ("--out=a/~", "--out=a/~"),
    ],
)
def test_tilde_is_the_user_s_folder(argument: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "HOME")
    assert _at_home(argument).removeprefix("--out=") == expected.removeprefix("--out=")
