"""What plays which part in a network, so that one recipe fits every family.

A recipe writes `@linears.weight` where it means the weights of all linears. `ROLES` says which modules these are in any
network with Mamba mixers; a family adds what only it has (`visq.models.family.Family.roles`).
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from visq.errors import VisqError

#: Patterns over module names by role. `?` before a pattern: networks that lack such a module are fine.
ROLES: dict[str, tuple[str, ...]] = {
    # The matrix products of a block.
    "linears": ("*.in_proj", "*.x_proj*", "*.dt_proj*", "*.out_proj"),
    # The first and the last layer, and what changes the resolution between blocks.
    "ends": ("?patch_embed.proj", "?head"),
    # The depthwise convolution in front of the scan, conv1d or conv2d.
    "depthwise": ("*.conv[12]d*",),
    # Functions of one variable: of the scan's input, and the gate.
    "activations": ("*.silu*", "?*.gate"),
    "scans": ("*.scan*",),
    # The products of two activations in self-attention, and the softmax between them.
    "attention": ("?*.attn",),
}


def matches(pattern: str, name: str) -> bool:
    """Returns whether a pattern of a recipe names a site or a module. `*` crosses dots.

    `*.head` also names a module `head` at the top of a network; a `?` in front (see `ROLES`) does not count.
    """
    return fnmatchcase(name, pattern) or fnmatchcase(f".{name}", pattern)


def expand(pattern: str) -> tuple[str, ...]:
    """Returns the patterns of `@role.site`, those of all families included; any other pattern is itself.

    Raises:
        VisqError: an unknown role.
    """
    if not pattern.startswith("@"):
        return (pattern,)
    roles = all_roles()
    role, dot, site = pattern[1:].partition(".")
    if role not in roles or not dot:
        raise VisqError(f"'{pattern}' names no role; known: {', '.join(f'@{name}.<site>' for name in roles)}")
    return tuple(f"{module}.{site}" for module in roles[role])


def all_roles() -> dict[str, tuple[str, ...]]:
    """Returns the patterns of every role: the common ones, then each family's in the order of registration."""
    from visq.models.family import families  # here, because reading an artifact's recipe must not load torch

    roles = dict(ROLES)
    for family in families().values():
        for role, patterns in family.roles.items():
            known = roles.get(role, ())
            roles[role] = known + tuple(pattern for pattern in patterns if pattern not in known)
    return roles
