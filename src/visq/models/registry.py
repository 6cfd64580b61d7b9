"""Lists the models that visq knows by name: their geometry, preprocessing and classes.

A card is built when it is asked for. So importing costs nothing, and a packaged model takes its geometry from its own
weights.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models.card import ModelCard
from visq.models.checkpoint import read_safetensors_header
from visq.models.dvmsr import DVMSRConfig as DVMSRConfig  # registers the family
from visq.models.efficientvmamba import EfficientVMambaConfig
from visq.models.efficientvmamba_checkpoint import EFFICIENTVMAMBA as EFFICIENTVMAMBA  # registers the family
from visq.models.family import default_preprocess, families, family_of, load_plugins, num_classes, override
from visq.models.geometry import VIM as VIM  # registers the family
from visq.models.local_directions import LOCAL_VIM, LOCAL_VSSM_SMALL, LOCAL_VSSM_TINY, PLAIN
from visq.models.localvim import LocalVimConfig
from visq.models.localvim_checkpoint import LOCALVIM as LOCALVIM  # registers the family
from visq.models.localvmamba import LocalVMambaConfig
from visq.models.localvmamba_checkpoint import LOCALVMAMBA as LOCALVMAMBA  # registers the family
from visq.models.mambavision import MambaVisionConfig
from visq.models.mambavision_checkpoint import MAMBAVISION as MAMBAVISION  # registers the family
from visq.models.vim import VimConfig
from visq.models.vim_seg_checkpoint import VIM_SEG as VIM_SEG  # registers the family
from visq.models.vmamba import VMambaConfig
from visq.models.vmamba_checkpoint import VMAMBA as VMAMBA  # registers the family
from visq.models.vmamba_seg_checkpoint import VMAMBA_SEG as VMAMBA_SEG  # registers the family

#: Folder of the weights that come with the package.
PRETRAINED = Path(__file__).parent / "pretrained"
#: The package of larger networks, which is installed by itself.
MODELS_PACKAGE = "visq-models"

_CARDS: dict[str, Callable[[], ModelCard]] = {}


def register(name: str) -> Callable[[Callable[[], ModelCard]], Callable[[], ModelCard]]:
    """Registers the decorated function as the builder of the card of `name`."""

    def add(build: Callable[[], ModelCard]) -> Callable[[], ModelCard]:
        _CARDS[name] = build
        return build

    return add


def list_models() -> list[ModelCard]:
    """Returns every card, in order of registration."""
    load_plugins()
    return [build() for build in _CARDS.values()]


def get_card(name: str) -> ModelCard:
    """Returns the card of `name`. Raises VisqError, with close names, for an unknown one."""
    load_plugins()
    if name not in _CARDS:
        close = difflib.get_close_matches(name, _CARDS, n=3, cutoff=0.5)
        if os.path.exists(name) and not close:
            kind = "folder" if os.path.isdir(name) else "file"
            give = "give a model's name, and a file as its checkpoint"
            raise VisqError(f"unknown model {name!r}: it is a {kind}; {give}")
        short = [known for known in _CARDS if len(known) < 30]
        known = f"known: {', '.join(short[:3])}, ...; `visq models` lists them"
        meant = f"did you mean {', '.join(close)}?" if close else known
        generic = ", ".join(sorted(families()))
        raise VisqError(f"unknown model {name!r}; {meant} (of any geometry: {generic})")
    return _CARDS[name]()


def create_model(name: str | None = "vim_tiny", **geometry: Any) -> Any:
    """Builds a model with random weights.

    Arguments:
        name: a registered name; a family's for its plain config (None is "vim").
        geometry: fields of the config that replace the registered ones.

    Returns the model in training mode with its card in `model.card`. An unknown name or field is a VisqError.
    """
    if is_generic(name):
        family = families()[name or "vim"]
        config = override(family.config(), geometry)
        card = ModelCard(family.name, config, family.preprocess(config), description=f"{family.title} of any geometry")
    else:
        assert name is not None
        card = adapt(get_card(name), geometry)
    model: Any = family_of(card.config).network(card.config)
    model.card = card
    return model


def is_generic(name: str | None) -> bool:
    """Returns whether `name` stands for any network of a family instead of a registered one."""
    return name is None or name in families()


def adapt(card: ModelCard, geometry: dict[str, Any]) -> ModelCard:
    """Returns `card` for another geometry, without the classes and claims that no longer hold."""
    config = override(card.config, geometry)
    if config == card.config:
        return card
    old, preprocess = card.config, card.preprocess
    size = getattr(config, "image_size", preprocess.image_size)
    if config.channels != old.channels:
        preprocess = family_of(config).preprocess(config)
    elif size != preprocess.image_size:
        preprocess = rescaled(preprocess, size)
    classes = card.classes if num_classes(config) == num_classes(old) else None
    return replace(card, config=config, preprocess=preprocess, classes=classes, published_top1=None)


def rescaled(preprocess: Preprocess, image_size: int) -> Preprocess:
    """Returns the transform for another image size: the crop keeps its part of the resized image."""
    resize = image_size * preprocess.resize // preprocess.image_size
    return replace(preprocess, image_size=image_size, resize=max(resize, image_size))


def _official() -> Iterator[tuple[str, str, VimConfig, float]]:
    """Yields (official name, alias, geometry, published top-1) of the checkpoints of https://github.com/hustvl/Vim."""
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
    """Yields (name, geometry, published top-1) of the checkpoints of https://github.com/MzeroMiko/VMamba."""
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


def _mambavision_official() -> Iterator[tuple[str, MambaVisionConfig, float, float]]:
    """Yields (name, geometry, part of the resized image that is cropped, published top-1) of NVlabs/MambaVision."""
    tiny = MambaVisionConfig()
    base = MambaVisionConfig(stem_dim=64, embed_dim=128, depths=(3, 3, 10, 5), layer_scale=1e-5)
    large = replace(base, embed_dim=196, num_heads=(16, 32))
    large2 = replace(large, depths=(3, 3, 12, 5))
    large3 = replace(large, embed_dim=256, depths=(3, 3, 20, 10))
    yield "mamba_vision_T", tiny, 1.0, 82.3
    yield "mamba_vision_T2", replace(tiny, depths=(1, 3, 11, 4)), 0.98, 82.7
    yield "mamba_vision_S", MambaVisionConfig(stem_dim=64, embed_dim=96, depths=(3, 3, 7, 5)), 0.93, 83.3
    yield "mamba_vision_B", base, 1.0, 84.2
    yield "mamba_vision_L", large, 1.0, 85.0
    yield "mamba_vision_L2", large2, 1.0, 85.3
    yield "mamba_vision_B_21k", base, 1.0, 84.9
    yield "mamba_vision_L_21k", large, 1.0, 86.1
    yield "mamba_vision_L2_512_21k", replace(large2, image_size=512, windows=(32, 16)), 0.93, 87.3
    yield "mamba_vision_L3_256_21k", replace(large3, image_size=256, windows=(16, 8)), 1.0, 87.3
    yield "mamba_vision_L3_512_21k", replace(large3, image_size=512, windows=(32, 16)), 0.93, 88.1


def _mambavision_card(name: str, config: MambaVisionConfig, crop: float, top1: float) -> ModelCard:
    size, _, more = name.removeprefix("mamba_vision_").partition("_")
    data = "ImageNet-21k and 1k" if "21k" in more else "ImageNet-1k"
    description = f"MambaVision-{size}, {data}, {config.image_size} pixels"
    preprocess = replace(default_preprocess(config), resize=int(config.image_size / crop))
    return ModelCard(name, config, preprocess, description=description, published_top1=top1)


for _name, _hybrid, _crop, _top1 in _mambavision_official():
    register(_name)(partial(_mambavision_card, _name, _hybrid, _crop, _top1))


def _efficientvmamba_official() -> Iterator[tuple[str, EfficientVMambaConfig, float]]:
    """Yields (size, geometry, published top-1) of the checkpoints of https://github.com/TerryPei/EfficientVMamba."""
    for size, dim, depth, top1 in (("tiny", 48, 4, 76.5), ("small", 64, 4, 78.7), ("base", 96, 9, 81.8)):
        dims = tuple(dim * 2**level for level in range(4))
        yield size, EfficientVMambaConfig(dims=dims, depths=(2, 2, depth, 2)), top1


def _efficientvmamba_card(name: str, size: str, config: EfficientVMambaConfig, top1: float) -> ModelCard:
    description = f"EfficientVMamba-{size.capitalize()}, ImageNet-1k, 224 pixels"
    return ModelCard(name, config, default_preprocess(config), description=description, published_top1=top1)


for _size, _efficient, _top1 in _efficientvmamba_official():
    _name = f"efficient_vmamba_{_size}"
    register(_name)(partial(_efficientvmamba_card, _name, _size, _efficient, _top1))


def _localvim_official() -> Iterator[tuple[str, LocalVimConfig, float | None]]:
    """Yields (name, geometry, published top-1) of hunto/LocalMamba."""
    tiny = LocalVimConfig(directions=LOCAL_VIM)
    yield "local_vim_tiny", tiny, 76.2
    yield "local_vim_tiny_middle_cls_token", replace(tiny, variant="class_token"), 77.8
    yield "local_vim_small", LocalVimConfig(embed_dim=384, reduced=96, directions=PLAIN), 81.1
    yield "local_vim_tiny_wo_search", replace(tiny, directions=PLAIN), None


def _localvim_card(name: str, config: LocalVimConfig, top1: float | None) -> ModelCard:
    size = name.removeprefix("local_vim_").partition("_")[0].capitalize()
    text = {"class_token": ", class token in the middle", "rope": ""}[config.variant]
    text += "" if len(set(config.directions)) > 1 else ", the same directions in all layers"
    description = f"LocalVim-{size}{text}, ImageNet-1k, 224 pixels"
    return ModelCard(name, config, default_preprocess(config), description=description, published_top1=top1)


for _name, _local, _top in _localvim_official():
    register(_name)(partial(_localvim_card, _name, _local, _top))


def _localvmamba_card(size: str, depth: int, directions: tuple[str, ...], top1: float) -> ModelCard:
    config = LocalVMambaConfig(depths=(2, 2, depth, 2), directions=directions)
    description = f"LocalVMamba-{size.capitalize()}, ImageNet-1k, 224 pixels"
    preprocess = default_preprocess(config)
    return ModelCard(f"local_vssm_{size}", config, preprocess, description=description, published_top1=top1)


register("local_vssm_tiny")(partial(_localvmamba_card, "tiny", 9, LOCAL_VSSM_TINY, 82.7))
register("local_vssm_small")(partial(_localvmamba_card, "small", 27, LOCAL_VSSM_SMALL, 83.7))


#: name -> (family, package with the weights NAME.safetensors, description) of the models trained for visq.
_OURS = {
    "vim_nano_fmnist": ("vim", "visq", "small Vim trained on Fashion-MNIST"),
    "vim_micro_imagenette": ("vim", "visq", "small Vim trained on Imagenette (10 classes, 128 pixels)"),
    "vim_micro192_imagenette": ("vim", MODELS_PACKAGE, "the same at 192 pixels"),
    "vim_tiny_imagenette": ("vim", MODELS_PACKAGE, "a full Vim-Tiny trained on Imagenette (224 pixels)"),
    "vmamba_nano_imagenette": ("vmamba", MODELS_PACKAGE, "small VMamba trained on Imagenette (96 pixels)"),
    "efficientvmamba_nano_imagenette": (
        "efficientvmamba",
        MODELS_PACKAGE,
        "small EfficientVMamba trained on Imagenette (128 pixels)",
    ),
    "mambavision_nano_imagenette": (
        "mambavision",
        MODELS_PACKAGE,
        "small MambaVision trained on Imagenette (128 pixels)",
    ),
    "localvim_nano_imagenette": ("localvim", MODELS_PACKAGE, "small LocalVim trained on Imagenette (128 pixels)"),
    "vmamba_nano_camvid": ("vmamba_seg", MODELS_PACKAGE, "small VMamba that segments streets (CamVid, any size)"),
}


def weights_folders() -> list[Path]:
    """Returns the folders that hold packaged weights: visq's own, and visq-models where it is installed."""
    spec = find_spec(MODELS_PACKAGE.replace("-", "_"))
    return [PRETRAINED, *map(Path, () if spec is None else spec.submodule_search_locations or ())]


def packaged_weights(file: str) -> Path:
    """Returns the file of packaged weights by its name.

    Raises:
        VisqError: the file is in no package that is installed; the message names the package.
    """
    for folder in weights_folders():
        if (folder / file).exists():
            return folder / file
    package = _OURS[file.removesuffix(".safetensors")][1]
    if package == MODELS_PACKAGE:
        raise VisqError(
            f"{file} comes with the package {package}, which is not installed: pip install {package}, "
            f"or pip install ./packages/{package} in a clone of visq"
        )
    raise VisqError(f"the packaged weights {file} are missing; install visq again or pass --checkpoint")


def _packaged_card(name: str) -> ModelCard:
    """Builds a card from the weights' file: geometry from the shapes, preprocessing and classes from the header."""
    family_name, package, description = _OURS[name]
    family, file = families()[family_name], f"{name}.safetensors"
    description = f"{description}, shipped with {package}"
    try:
        path = packaged_weights(file)
    except VisqError:  # said when the weights are asked for; listing models needs no weights
        config = family.config()
        return ModelCard(name, config, family.preprocess(config), weights=file, description=description)
    shapes, notes = read_safetensors_header(path)
    config = family.infer(shapes, notes, ())
    preprocess = Preprocess.from_dict(notes["preprocess"]) if "preprocess" in notes else family.preprocess(config)
    classes = tuple(notes["classes"]) if "classes" in notes else None
    return ModelCard(name, config, preprocess, classes, weights=file, description=description)


for _name in _OURS:
    register(_name)(partial(_packaged_card, _name))
