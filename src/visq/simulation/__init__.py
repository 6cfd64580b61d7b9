"""The simulation of a deployed network: its own layers, to the last bit as the integer engine computes them."""

from visq.simulation.deploy import deploy, undeploy
from visq.simulation.images import refuse_bad_images

__all__ = ["deploy", "refuse_bad_images", "undeploy"]
