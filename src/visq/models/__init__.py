"""FP32 networks, their names, and the reading of checkpoints."""

from visq.models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from visq.models.family import FAMILIES, Family, register_family
from visq.models.loading import load_model
from visq.models.registry import ModelCard, create_model, get_card, list_models
from visq.models.stage import Stage
from visq.models.vim import VimConfig, VisionMamba
from visq.models.vmamba import VMamba, VMambaConfig

__all__ = [
    "create_model",
    "load_model",
    "list_models",
    "get_card",
    "ModelCard",
    "VimConfig",
    "VisionMamba",
    "VMambaConfig",
    "VMamba",
    "FAMILIES",
    "Family",
    "register_family",
    "Stage",
    "Checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]
