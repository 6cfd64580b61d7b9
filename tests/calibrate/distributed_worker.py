"""One process of a distributed calibration; started by test_distributed.py, several times at once.

    python distributed_worker.py OUT WORK RECIPE... [--die-at STAGE] [--elsewhere]

Writes a digest of every parameter and quantizer by recipe to OUT.<rank>.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from visq import parallel
from visq.calibrate import calibrate
from visq.device import CPU
from visq.errors import VisqError
from visq.models import create_model
from visq.models.vim import VisionMamba
from visq.quant.serialize import quantizer_to_parts
from visq.quant.site import named_sites
from visq.recipes import get_recipe

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.calibrate.conftest import Images
from tests.other_device import other_device


def tiny() -> VisionMamba:
    torch.manual_seed(0)
    sizes = dict(image_size=12, patch_size=4, stride=4, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=5)
    return create_model("vim", **sizes)


def digest(model: VisionMamba) -> str:
    """sha256 of all parameters and quantizers."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode() + tensor.detach().numpy().tobytes())
    for name, site in named_sites(model):
        if site.quantizer is not None:
            _, parts = quantizer_to_parts(site.quantizer)
            for part, tensor in sorted(parts.items()):
                state.update(f"{name}/{part}".encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("work", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--elsewhere", action="store_true", help="calibrate on tests.other_device")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parallel.start()
    images = Images(torch.randn(11, 1, 12, 12, generator=torch.Generator().manual_seed(1)))

    def report(done: int, total: int, name: str) -> None:
        if done == args.die_at and parallel.rank() == 1:
            os._exit(7)

    digests, started = {}, time.time()
    try:
        for recipe in args.recipes:
            model = tiny()
            work = args.work / recipe
            with other_device() if args.elsewhere else contextlib.nullcontext(CPU) as device:
                model.to(device)
                calibrate(model, get_recipe(recipe), images, work_dir=work, batch_size=4, report=report)  # type: ignore[arg-type]
                model.to(CPU)
            digests[recipe] = digest(model)
    except VisqError as error:
        print(f"{error} after {time.time() - started:.0f} s", file=sys.stderr)
        os._exit(1)
    Path(f"{args.out}.{parallel.rank()}").write_text(json.dumps(digests))
    parallel.stop()


if __name__ == "__main__":
    main()
