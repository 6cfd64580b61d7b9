"""The simulation of a deployed network: its own layers, to the last bit as the integer engine computes them."""

from visq.simulation.deploy import deploy, undeploy

__all__ = ["deploy", "undeploy"]
