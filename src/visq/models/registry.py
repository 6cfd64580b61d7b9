"""The models visq knows by name: their geometry, preprocessing and classes.

A card is built when it is asked for, so that importing costs nothing and a packaged model takes its geometry from its
own weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from visq.data import FASHION_MNIST_CLASSES, Preprocess
from visq.errors import VisqError
from visq.models.checkpoint import read_safetensors_header
from visq.models.family import FAMILIES, default_preprocess, family_of, override
from visq.models.geometry import infer_config
from visq.models.vim import VimConfig
from visq.models.vmamba import VMambaConfig
from visq.models.vmamba_checkpoint import VMAMBA as VMAMBA  # registers the family

#: Weights that come with the package.
PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class ModelCard:
    """What must be known beside the weights to use a model.

    Attributes:
        name: what users type; `alias_of` is the official name when `name` is a short one of ours.
        weights: file name under `models/pretrained`, or None when the user brings the checkpoint.
        published_top1: ImageNet top-1 in percent that the authors report for their checkpoint.
        checkpoint_sha256: hash of the checkpoint file the model was loaded from; None for random weights.
    """

    name: str
    config: Any
    preprocess: Preprocess
    classes: tuple[str, ...] | None = None
    weights: str | None = None
    description: str = ""
    published_top1: float | None = None
    checkpoint_sha256: str | None = None
    alias_of: str | None = None


_CARDS: dict[str, Callable[[], ModelCard]] = {}


def register(name: str) -> Callable[[Callable[[], ModelCard]], Callable[[], ModelCard]]:
    """Decorator: the function builds the card of `name`."""

    def add(build: Callable[[], ModelCard]) -> Callable[[], ModelCard]:
        _CARDS[name] = build
        return build

    return add


def list_models() -> list[ModelCard]:
    """Every card, in order of registration."""
    return [build() for build in _CARDS.values()]


def get_card(name: str) -> ModelCard:
    """The card of `name`; an unknown name is a VisqError that names close ones."""
    if name not in _CARDS:
        close = difflib.get_close_matches(name, _CARDS, n=3, cutoff=0.5)
        meant = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(_CARDS)}"
        families = " and ".join(f"`{family}`" for family in FAMILIES)
        raise VisqError(f"unknown model {name!r}; {meant} ({families} take any geometry)")
    return _CARDS[name]()


def create_model(name: str | None = "vim_tiny", **geometry: Any) -> Any:
    """A model with random weights.

    Arguments:
        name: a registered name; a family's for its plain config (None is "vim").
        geometry: fields of the config that replace the registered ones.

    Returns the model in training mode with its card in `model.card`. An unknown name or field is a VisqError.
    """
    if is_generic(name):
        family = FAMILIES[name or "vim"]
        config = override(family.config(), geometry)
        card = ModelCard(family.name, config, family.preprocess(config), description=f"{family.title} of any geometry")
    else:
        assert name is not None
        card = adapt(get_card(name), geometry)
    model: Any = family_of(card.config).network(card.config)
    model.card = card
    return model


def is_generic(name: str | None) -> bool:
    """Whether `name` stands for any network of a family instead of a registered one."""
    return name is None or name in FAMILIES


def adapt(card: ModelCard, geometry: dict[str, Any]) -> ModelCard:
    """`card` for another geometry: images, classes and claims that no longer hold are replaced or dropped."""
    config = override(card.config, geometry)
    if config == card.config:
        return card
    old, preprocess = card.config, card.preprocess
    if (config.image_size, config.channels) != (old.image_size, old.channels):
        preprocess = family_of(config).preprocess(config)
    classes = card.classes if config.num_classes == old.num_classes else None
    return replace(card, config=config, preprocess=preprocess, classes=classes, published_top1=None)


def _official() -> Iterator[tuple[str, str, VimConfig, float]]:
    """(official name, alias, geometry, published top-1) of the checkpoints of https://github.com/hustvl/Vim."""
    tail = "bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
    for size, embed_dim, top1, top1_stride8 in (("tiny", 192, 76.1, 78.3), ("small", 384, 80.5, 81.6)):
        stride8 = VimConfig(embed_dim=embed_dim, stride=8)
        yield f"vim_{size}_patch16_224_{tail}", f"vim_{size}", VimConfig(embed_dim=embed_dim), top1
        yield f"vim_{size}_patch16_stride8_224_{tail}", f"vim_{size}_stride8", stride8, top1_stride8
    base = "vim_base_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_middle_cls_token_div2"
    yield base, "vim_base", VimConfig(embed_dim=768), 81.9


def _official_card(name: str, alias_of: str | None, config: VimConfig, top1: float) -> ModelCard:
    size = name.split("_")[1].capitalize()
    description = f"Vim-{size}, ImageNet-1k, {config.image_size} pixels, stride {config.stride}"
    preprocess = default_preprocess(config)
    return ModelCard(name, config, preprocess, description=description, published_top1=top1, alias_of=alias_of)


for _name, _alias, _config, _top1 in _official():
    register(_alias)(partial(_official_card, _alias, _name, _config, _top1))
    register(_name)(partial(_official_card, _name, None, _config, _top1))


def _vmamba_official() -> Iterator[tuple[str, VMambaConfig, float]]:
    """(name, geometry, published top-1) of the checkpoints of https://github.com/MzeroMiko/VMamba."""
    for size, embed_dim, depth, top1 in (("tiny", 96, 8, 82.6), ("small", 96, 20, 83.3), ("base", 128, 20, 83.8)):
        yield f"vmambav2v_{size}", VMambaConfig(embed_dim=embed_dim, depths=(2, 2, depth, 2)), top1
    for size, embed_dim, depth, top1 in (("tiny", 96, 9, 82.2), ("small", 96, 27, 83.5), ("base", 128, 27, 83.7)):
        depths = (2, 2, depth, 2)
        config = VMambaConfig(embed_dim=embed_dim, depths=depths, d_state=16, expand=2, mlp_ratio=0, forward_type="v0")
        yield f"vmambav0_{size}", config, top1


def _vmamba_card(name: str, config: VMambaConfig, top1: float) -> ModelCard:
    description = f"VMamba-{name.rpartition('_')[2].capitalize()} ({config.forward_type}), ImageNet-1k, 224 pixels"
    return ModelCard(name, config, default_preprocess(config), description=description, published_top1=top1)


for _name, _geometry, _top1 in _vmamba_official():
    register(_name)(partial(_vmamba_card, _name, _geometry, _top1))


@register("vim_nano_fmnist")
def _vim_nano_fmnist() -> ModelCard:
    weights = "vim_nano_fmnist.safetensors"
    return ModelCard(
        name="vim_nano_fmnist",
        config=_packaged_config(weights),
        preprocess=Preprocess.fashion_mnist(),
        classes=FASHION_MNIST_CLASSES,
        weights=weights,
        description="small Vim trained on Fashion-MNIST, shipped with visq",
    )


def _packaged_config(weights: str) -> VimConfig:
    """The geometry of packaged weights, from the file itself."""
    path = PRETRAINED / weights
    if not path.exists():
        return VimConfig(image_size=28, patch_size=4, stride=4, channels=1, embed_dim=96, depth=6, num_classes=10)
    shapes, notes = read_safetensors_header(path)
    return infer_config(shapes, {"image_size": 28, **notes})
