"""Reads YAML that people write by hand: nothing is said twice, and a small file cannot become a large value."""

from __future__ import annotations

from typing import Any

import yaml

#: Largest text [characters] and largest value [nodes, each alias counted as often as it is used].
MOST_CHARACTERS, MOST_NODES = 1_000_000, 100_000
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, says a key twice, refers to itself, or is too large or too deep.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"its aliases expand to more than {MOST_NODES:,} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except (ValueError, OverflowError) as error:  # a date like 2024-99-99, a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Returns the number of nodes below a node, with aliases expanded.

    Arguments:
        sizes: what is known so far, by the node's identity; 0 for one that is being measured.
    Raises:
        yaml.YAMLError: a node contains itself, or a mapping says a key twice.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise yaml.YAMLError("an alias refers to itself")
    if known is None:
        sizes[id(node)] = 0
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known = sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return known


def _check_keys(node: yaml.MappingNode) -> None:
    """Raises YAMLError for a key that stands twice; what a merge key (`<<`) brings may be overruled."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"key {key.value[:60]!r} stands twice, line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
