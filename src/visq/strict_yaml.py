"""Reads YAML that people write by hand: nothing is said twice, and a small file cannot become a large value."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

#: Largest text [characters] and largest value [nodes, each alias counted as often as it is used].
MOST_CHARACTERS, MOST_NODES = 1_000_000, 100_000


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses keys that stand twice in a mapping; merge keys (`<<`) may still be overruled."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {str(key)[:60]!r} stands twice, line {line}"
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, says a key twice, refers to itself, or is too large or too deep.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
    loader = _StrictLoader(text)
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
    """Returns the number of nodes below a node, with aliases expanded; YAMLError for one that contains itself."""
    known = sizes.get(id(node))
    if known is None:
        sizes[id(node)] = 0  # a size of nothing: the node is being measured
        entries = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = [child for entry in entries for child in (entry if isinstance(entry, tuple) else (entry,))]
        known = sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    elif known == 0:
        raise yaml.YAMLError("an alias refers to itself")
    return known
