"""Fuzzes the loader of flat files and the engine behind it: libFuzzer, AddressSanitizer, UndefinedBehaviorSanitizer.

    python tools/fuzz.py [--runs 1000000] [--seconds 0] [--folder build/fuzz]

Needs Clang, CMake and the virtual environment of `make setup`. Findings lie in the folder as crash-*. A later run
goes on with the corpus of an earlier one. The kernels are those of the level `scalar`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import visq
from visq.export import export
from visq.models import create_model
from visq.models.family import families, image_size
from visq.recipes import get_recipe

ROOT = Path(__file__).resolve().parents[1]
#: Every scope, each form of scan, and weights and codecs of all kinds.
RECIPES = (
    *("minmax-w8a8-linear", "kscaled-w4a4", "kscaled-w8a8-paper", "visq-w8a8-fused"),
    *("visq-ladder-w8a8", "visq-rotated-w4a4-fused", "qmamba-w4a4"),
)
#: As small as networks get: a fuzzer lives on many runs.
SIZE = 12
NETWORKS = {
    "vim": dict(patch_size=4, stride=4, embed_dim=8, depth=1, d_state=2),
    "vmamba": dict(embed_dim=8, depths=(1,)),
    "mambavision": dict(
        image_size=32, stem_dim=4, embed_dim=4, depths=(1, 1, 2, 2), num_heads=(1, 2), windows=(2, 1), d_state=2
    ),
    "efficientvmamba": dict(dims=(4, 4, 8), depths=(1, 1, 1), d_state=2, hidden_ratio=2),
    "localvim": dict(patch_size=4, embed_dim=8, depth=1, d_state=2, reduced=4, directions=("h_flip v w2 w2_flip",)),
    "localvmamba": dict(embed_dim=8, depths=(1,), d_state=2, reduction=4, directions=("h v_flip w2 w2_flip",)),
    "vmamba_seg": dict(embed_dim=4, depths=(1, 1), mlp_ratio=1, head="upernet", head_dim=4),
    "dvmsr": dict(channels=3, embed_dim=8, depths=(1,), d_state=2, upscale=2),
}
#: Of the networks that have operations of their own.
OTHERS = ("minmax-w8a8-linear", "visq-w8a8-fused")


def small(network: str) -> nn.Module:
    """Returns a network with random weights and a card."""
    family = families()[network]
    options = {"image_size": SIZE, "channels": 1, "num_classes": 10, **NETWORKS[network]}
    known = {field.name for field in fields(family.config)}
    model = create_model(network, **{name: value for name, value in options.items() if name in known})
    model = family.fold(model.eval())  # as loading does
    card = visq.load_model("vim_nano_fmnist").card
    side, channels = image_size(model.config) or SIZE, model.config.channels
    middle = (0.5,) * channels
    preprocess = replace(card.preprocess, image_size=side, resize=side, channels=channels, mean=middle, std=middle)
    model.card = replace(card, preprocess=preprocess, classes=card.classes if "num_classes" in known else None)
    return model


def seeds(folder: Path) -> int:
    """Writes a flat file for each recipe; returns how many there are."""
    pairs = [("vim", recipe) for recipe in RECIPES]
    pairs += [(network, recipe) for network in list(NETWORKS)[1:] for recipe in OTHERS]
    for network, recipe in pairs:
        out = folder / f"{network}-{recipe}.visq"
        if out.exists():
            continue
        torch.manual_seed(0)
        model = small(network)
        side, any_size = model.card.preprocess.image_size, families()[network].any_size
        plan = get_recipe(recipe).without_positions() if any_size else get_recipe(recipe)
        images = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), dtype=np.uint8)
        artifact = folder.parent / "artifacts" / out.stem
        visq.quantize(model, plan, images, samples=8, out=artifact, check=False, overwrite=True)
        export(artifact, out, format="visq", threads=1, size=(side, side) if any_size else None)
    return len(pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="0: no limit")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if missing := [name for name in ("clang++", "cmake") if not shutil.which(name)]:
        sys.exit(f"fuzz: the loader is not fuzzed: {', '.join(missing)} missing (apt install clang cmake)")
    corpus, known = folder / "corpus", folder / "seeds"
    for needed in (corpus, known):
        needed.mkdir(parents=True, exist_ok=True)
    print(f"{seeds(known)} files to start from", flush=True)
    options = ["-DCMAKE_CXX_COMPILER=clang++", "-DVISQ_FUZZ=ON", "-DVISQ_SCALAR_ONLY=ON"]
    subprocess.run(["cmake", "-S", ROOT / "csrc", "-B", folder / "cmake", *options], check=True)
    subprocess.run(["cmake", "--build", folder / "cmake", "--parallel", str(os.cpu_count())], check=True)
    command = [folder / "cmake" / "fuzz-file", f"-runs={arguments.runs}", f"-max_total_time={arguments.seconds}"]
    command += ["-max_len=300000", "-rss_limit_mb=4096", "-malloc_limit_mb=4096", "-timeout=20", "-print_final_stats=1"]
    # Slow files are tried less often. Otherwise they fill the corpus, and the rate falls from 1,500 a second to 20.
    command += ["-entropic_scale_per_exec_time=1", f"-artifact_prefix={folder}/", corpus, known]
    return subprocess.run([*map(str, command)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
