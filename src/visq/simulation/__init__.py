"""Simulates a deployed network: the model's own layers compute the integer engine's bits."""

from visq.simulation.deploy import deploy, move, undeploy
from visq.simulation.images import refuse_bad_images

__all__ = ["deploy", "move", "refuse_bad_images", "undeploy"]
