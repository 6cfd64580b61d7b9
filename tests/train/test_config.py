"""Reading training configurations: defaults, overrides, and errors that name file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from visq.errors import VisqError
from visq.models.registry import weights_folders
from visq.train import TrainConfig, load_config
from visq.train.config import differences

SHIPPED = sorted((Path(__file__).parents[2] / "configs/train").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    needed = [*config.average_with, *filter(None, [config.model.checkpoint])]
    if needed:  # weights of an earlier stage, or of a tool: where the commands in a file's first lines put them
        stages = {f"runs/{shipped.stem}/model.safetensors" for shipped in SHIPPED}
        made = set(
            re.findall(r"^#   python tools/.* (\S+\.safetensors)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert set(needed) < stages | made and f"runs/{path.stem}/model.safetensors" not in needed
    else:
        size = config.preprocess.image_size
        assert config.model.geometry.get("image_size", size) == size
        assert (config.masks is None) == ("image_size" in config.model.geometry)


def test_the_one_copy_of_every_shipped_models_configuration() -> None:
    """Configurations stand in configs/train alone; each packaged model with a log has one of its name there."""
    shipped = {path.stem for path in SHIPPED}
    trained = {
        path.name.removesuffix(".log.jsonl") for folder in weights_folders() for path in folder.glob("*.log.jsonl")
    }
    assert trained and trained <= shipped
    assert not [path for folder in weights_folders() for path in folder.glob("*.yaml")]


def test_round_trip(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.to_yaml())
    assert load_config(copy) == config


def test_overrides(config_file: Path) -> None:
    config = load_config(config_file, ["data.train=elsewhere", "lr=1e-3", "augment.flip=0.5", "model.geometry.depth=2"])
    assert (config.data.train, config.lr, config.augment.flip) == ("elsewhere", 1e-3, 0.5)
    assert config.model.geometry["depth"] == 2 and config.augment.crop_padding == 1


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["learning_rate=1"], r"tiny\.yaml: learning_rate: unknown key"),
        (["augment.blur=1"], r"tiny\.yaml: augment\.blur: unknown key"),
        (["epochs=0"], r"tiny\.yaml: epochs: Input should be greater than or equal to 1"),
        (["data.preprocess.size=3"], r"data\.preprocess: preprocess: unknown key size"),
        (["data.preprocess.std=[1,2]"], r"data\.preprocess: .*2 values for 1 channels"),
        (["ema_decay=0"], "save: ema needs ema_decay"),
        (["min_lr=1"], r"min_lr 1\.0 is above lr"),
        (["warmup_epochs=9"], "leaves nothing of 4 epochs"),
        (["data.train_size=4"], r"data\.train_size 4 is below the model's image_size 8"),
        (["data.train_size=12"], r"data\.train_size 12 needs augment\.resized_crop"),
        (["model.interpolate_positions=true"], "interpolate_positions needs a checkpoint"),
        (["augment.resized_crop=[0.9, 0.1]"], r"augment\.resized_crop: needs 0 < low <= high <= 1"),
        (["precision=fp8"], "precision"),
        (["lr"], "not of the form key.sub=value"),
        (["lr=["], "override 'lr=\\['"),
        (["epochs.x=1"], "epochs has no keys below it"),
    ],
)
def test_errors_name_the_key(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(VisqError, match=message) as caught:
        load_config(config_file, overrides)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with pytest.raises(VisqError, match="cannot be read"):
        load_config(path)
    path.write_text("a: [")
    with pytest.raises(VisqError, match="cannot be read"):
        load_config(path)
    path.write_text("- a")
    with pytest.raises(VisqError, match="mapping"):
        load_config(path)
    path.write_text("epochs: 1")
    with pytest.raises(VisqError, match="model: Field required; data: Field required"):
        load_config(path)


def test_differences(config_file: Path) -> None:
    config = load_config(config_file)
    assert differences(config.to_yaml(), config) == []
    without = "\n".join(line for line in config.to_yaml().splitlines() if not line.startswith("compile"))
    assert differences(without, config) == []  # an older version had not all keys
    changed = load_config(config_file, ["lr=0.25", "augment.flip=0.5"])
    assert differences(config.to_yaml(), changed) == ["augment.flip: 0.0 there, 0.5 here", "lr: 0.005 there, 0.25 here"]
    with pytest.raises(VisqError, match="stored configuration"):
        differences("epochs: none", config)


def test_config_is_frozen(config_file: Path) -> None:
    config = load_config(config_file)
    with pytest.raises(ValueError):
        config.epochs = 3
    assert isinstance(config, TrainConfig)
