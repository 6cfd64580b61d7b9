"""What plays which part in a network, so that one recipe fits every family.

A recipe writes `@linears.weight` where it means the weights of all linears; the patterns below say which modules these
are in the families visq knows. `?` before a pattern: networks that lack such a module are fine.
"""

from __future__ import annotations

from visq.errors import VisqError

ROLES: dict[str, tuple[str, ...]] = {
    # The matrix products of a block: Mamba's four, VMamba's MLP and patch merging.
    "linears": ("*.in_proj", "*.x_proj*", "*.dt_proj*", "*.out_proj", "?*.mlp.fc*", "?*.reduction"),
    # Convolutions that mix channels, and the head: the ends of a network and the ways between its resolutions.
    "ends": ("?patch_embed.proj", "?*.conv", "?conv_*", "?upsample.*", "?head"),
    # The depthwise convolution in front of the scan, conv1d or conv2d.
    "depthwise": ("*.conv?d*",),
    # Smooth functions of one variable: of the scan's input, the gate, the MLP.
    "activations": ("*.silu*", "?*.gate", "?*.mlp.act"),
    "scans": ("*.scan*",),
}


def expand(pattern: str) -> tuple[str, ...]:
    """The patterns of `@role.site`; any other pattern is itself. Raises VisqError for an unknown role."""
    if not pattern.startswith("@"):
        return (pattern,)
    role, dot, site = pattern[1:].partition(".")
    if role not in ROLES or not dot:
        raise VisqError(f"'{pattern}' names no role; known: {', '.join(f'@{name}.<site>' for name in ROLES)}")
    return tuple(f"{module}.{site}" for module in ROLES[role])
