"""FP32 networks, their names, and the reading of checkpoints."""

from visq.models.registry import ModelCard, create_model, get_card, list_models
from visq.models.vim import VimConfig, VisionMamba

__all__ = ["ModelCard", "VimConfig", "VisionMamba", "create_model", "get_card", "list_models"]
