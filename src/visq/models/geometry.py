"""Reads the geometry of a Vim from the shapes of its checkpoint, and says how two geometries differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from visq.errors import VisqError
from visq.models.family import Family, Shapes, register_family
from visq.models.names import printable
from visq.models.vim import VimConfig, VisionMamba

_IN_PROJ = "layers.0.mixer.in_proj.weight"
#: Name -> number of axes of the tensors that determine a geometry.
_TELLING = {
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    _IN_PROJ: 2,
    "layers.0.mixer.A_log": 2,
    "layers.0.mixer.conv1d.weight": 3,
    "head.weight": 2,
}


def infer_config(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[VimConfig] = ()) -> VimConfig:
    """Returns the geometry of a checkpoint.

    Arguments:
        shapes: name -> shape of its tensors.
        hints: `image_size` and `stride` where they are known; shapes alone do not tell them.
        known: geometries preferred when several image sizes and strides give the same number of tokens.

    Without hints or a known geometry, patches are taken not to overlap (stride = patch). Raises VisqError when the
    tensors are not those of a Vim or when no image size fits their number of tokens.
    """
    missing = [name for name, axes in _TELLING.items() if len(shapes.get(name, ())) != axes]
    if missing == ["head.weight"]:
        raise VisqError("a Vim without a head (head.weight); give the classifier's checkpoint, not its backbone's")
    if missing:
        raise VisqError(
            f"not a Vim checkpoint: {', '.join(missing)} missing or of another rank; it has {_some(list(shapes))}"
        )
    inner, embed_dim = shapes[_IN_PROJ]
    patch_size = shapes["patch_embed.proj.weight"][2]
    if embed_dim == 0 or inner == 0 or inner % (2 * embed_dim) or patch_size == 0:
        raise VisqError(
            f"not a Vim checkpoint: {_IN_PROJ} is {shapes[_IN_PROJ]}, expected (2 * expand * embed_dim, embed_dim)"
        )
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    config = VimConfig(
        image_size=patch_size,
        patch_size=patch_size,
        stride=patch_size,
        channels=shapes["patch_embed.proj.weight"][1],
        embed_dim=embed_dim,
        depth=len(layers),
        d_state=shapes["layers.0.mixer.A_log"][1],
        expand=inner // (2 * embed_dim),
        d_conv=shapes["layers.0.mixer.conv1d.weight"][2],
        num_classes=shapes["head.weight"][0],
    )
    tokens = shapes["pos_embed"][1]
    image_size, stride = hints.get("image_size"), hints.get("stride")
    if image_size is None and stride is None:
        for other in known:
            same = other.num_classes == config.num_classes and _same_but_image(other, config)
            if same and other.num_tokens == tokens:
                return replace(config, image_size=other.image_size, stride=other.stride)
    image_size, stride = fit_image(tokens, patch_size, image_size, stride)
    return replace(config, image_size=image_size, stride=stride)


def fit_image(
    tokens: int, patch_size: int, image_size: int | None = None, stride: int | None = None
) -> tuple[int, int]:
    """Returns the (image_size, stride) whose patches and one class token make `tokens` tokens.

    A size or stride that is given is kept. Raises VisqError when no pair fits.
    """
    side = _side(tokens)
    if side is None:
        raise VisqError(f"the position embedding has {tokens} tokens; {sizes_that_fit(tokens, patch_size)}")
    if image_size is None:
        stride = stride or patch_size
        return (side - 1) * stride + patch_size, stride
    if stride is None:
        stride = _stride(side, patch_size, image_size)
    if stride is None or (image_size - patch_size) // stride + 1 != side:
        at_stride = f" at stride {stride}" if stride else ""
        raise VisqError(
            f"the position embedding has {tokens} tokens, which does not fit images of {image_size} pixels in patches "
            f"of {patch_size}{at_stride}; {sizes_that_fit(tokens, patch_size)}"
        )
    return image_size, stride


def _stride(side: int, patch_size: int, image_size: int) -> int | None:
    """Returns the stride for `side` patches a side: the patch size where it fits, else the largest that does."""
    span = image_size - patch_size
    smallest, largest = span // side + 1, span // (side - 1) if side > 1 else max(span + 1, patch_size)
    if span < 0 or smallest > largest:
        return None
    return patch_size if smallest <= patch_size <= largest else largest


def sizes_that_fit(tokens: int, patch_size: int) -> str:
    """Returns the image sizes that give `tokens` tokens at the usual strides, as a piece of a sentence."""
    side = _side(tokens)
    if side is None:
        return (
            f"{tokens} is no square number of patches plus one class token, and Vims without a class token, with two, "
            "or for images that are not square are not supported"
        )
    strides = [s for s in (patch_size, patch_size // 2, patch_size // 4) if s > 0]
    return f"{tokens} tokens fit " + ", ".join(f"{(side - 1) * s + patch_size} pixels at stride {s}" for s in strides)


def _side(tokens: int) -> int | None:
    """Returns the patches a side when `tokens` are a square of patches and one class token, else None."""
    side = isqrt(max(tokens - 1, 0))
    return side if side > 0 and side * side == tokens - 1 else None


def resembling(config: Any, cards: Mapping[str, Any]) -> str | None:
    """Returns the first name in `cards` whose tensors have the shapes of `config`; heads may differ."""
    for name, other in cards.items():
        if type(other) is type(config) and _tokens(other) == _tokens(config) and _same_but_image(other, config):
            return name
    return None


def _tokens(config: Any) -> int | None:
    """Returns the number of tokens of the position embedding, or None for a network without one."""
    return getattr(config, "num_tokens", None)


def differences(expected: Shapes, found: Shapes) -> str | None:
    """Returns in words how the shapes `found` differ from `expected`, or None when they are the same.

    Missing and unexpected names come first; shapes are compared when the names agree.
    """
    missing, unexpected = [n for n in expected if n not in found], [n for n in found if n not in expected]
    texts = []
    if missing:
        texts.append(f"{len(missing)} missing key{'s' * (len(missing) > 1)}: {_some(missing)}")
    if unexpected:
        texts.append(f"{len(unexpected)} unexpected key{'s' * (len(unexpected) > 1)}: {_some(unexpected)}")
    if texts:
        return "; ".join(texts)
    # The input projection comes first, because it tells two Vims apart.
    names = sorted((n for n in expected if expected[n] != found[n]), key=lambda name: name != _IN_PROJ)
    if not names:
        return None
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"{printable(name)} is {found[name]}, expected {expected[name]}" for name in names[:5]) + rest


def refuse_variants(shapes: Shapes, official_name: str | None) -> None:
    """Raises VisqError for the variants of the public code that visq does not run.

    Each variant is known by a tensor that only its checkpoints have, or by its official name.
    """
    mixer = "layers.0.mixer."
    reason = None
    if "cls_token_head" in shapes or "cls_token_tail" in shapes:
        reason = "it has two class tokens (cls_token_head, cls_token_tail)"
    elif any(name.startswith("rope.") for name in shapes):
        reason = "it has rotary position embeddings (rope.*)"
    elif mixer + "gamma" in shapes:
        reason = "it has layer scale (mixer.gamma)"
    elif "norm_f.bias" in shapes:
        reason = "it has LayerNorm (norm_f.bias) instead of RMSNorm"
    elif mixer + "A_log" in shapes and mixer + "A_b_log" not in shapes:
        reason = "it scans in one direction only (no A_b_log)"
    elif mixer + "A_b_log" in shapes and mixer + "conv1d_b.weight" not in shapes:
        reason = "its two directions share their projections (bimamba v1)"
    elif mixer + "A_log" in shapes and "pos_embed" not in shapes:
        reason = "it has no absolute position embedding (pos_embed)"
    elif mixer + "A_log" in shapes and "cls_token" not in shapes:
        reason = "it has no class token"
    elif official_name and "bimamba" in official_name:
        # No tensor tells where the class token stands or whether directions are averaged; only the name does.
        if "midclstok" not in official_name and "middle_cls_token" not in official_name:
            reason = f"by its name ({official_name}) its class token is not in the middle"
        elif not official_name.endswith("div2"):
            reason = f"by its name ({official_name}) its two directions are added, not averaged"
    if reason:
        raise VisqError(
            f"this Vim variant is not supported: {reason}; supported: bimamba v2, one middle class token, div2"
        )


def _same_but_image(a: Any, b: Any) -> bool:
    """Returns whether two geometries are the same but for the image, the head and the rate of dropped paths."""
    free = {name: getattr(a, name) for name in ("image_size", "stride", "num_classes", "drop_path") if hasattr(a, name)}
    return bool(a == replace(b, **free))


def _some(names: list[str]) -> str:
    return ", ".join(map(printable, names[:5])) + (", ..." if len(names) > 5 else "")


VIM = register_family(Family("vim", "Vim", VimConfig, VisionMamba, infer_config, refuse=refuse_variants))
