"""Writes a LocalVim checkpoint that starts from a Vim's weights, so that training need not begin at random ones.

    python tools/localvim_from_vim.py VIM CONFIG OUT.safetensors

VIM is a registered name with weights or a checkpoint, CONFIG a training configuration of a LocalVim with a class
token and the Vim's sizes. Each direction takes the Vim's forward branch, or its backward branch if it ends in `_flip`.
Each gate begins near one over the number of directions.
"""

from __future__ import annotations

import math
import sys

import torch

from visq.models import create_model, load_model, save_checkpoint
from visq.models.local_scan import directions_of
from visq.models.localvim import Block, LocalVim
from visq.train import load_config


def start(vim: str, config: str) -> LocalVim:
    """Returns a LocalVim of the configuration's geometry with the weights of `vim`."""
    source = load_model(None, checkpoint=vim) if vim.endswith((".safetensors", ".pth")) else load_model(vim)
    model: LocalVim = create_model("localvim", **load_config(config).model.geometry)
    weights = source.state_dict()
    taken = {name: tensor for name, tensor in model.state_dict().items()}
    taken |= {name: weights[name] for name in taken if name in weights}
    for i, block in enumerate(model.layers):
        assert isinstance(block, Block)
        directions = directions_of(model.config.directions, i)
        for j, direction in enumerate(directions):
            prefix = f"layers.{i}.mixer.directions.{j}."
            for name in (name for name in taken if name.startswith(prefix)):
                taken[name] = weights[f"layers.{i}.mixer.{_branch(name.removeprefix(prefix), direction)}"]
        factor = 1 / len(directions)
        taken[f"layers.{i}.mixer.attn.channel_select.bias"] = torch.full_like(
            taken[f"layers.{i}.mixer.attn.channel_select.bias"], math.log(factor / (1 - factor))
        )
    model.load_state_dict(taken)
    return model


def _branch(name: str, direction: str) -> str:
    """Returns the name in a Vim's mixer of a direction's parameter."""
    if not direction.endswith("_flip"):
        return name
    if name == "A_log":
        return "A_b_log"
    first, dot, rest = name.partition(".")
    return f"{first}_b{dot}{rest}"


if __name__ == "__main__":
    save_checkpoint(start(sys.argv[1], sys.argv[2]), sys.argv[3])
