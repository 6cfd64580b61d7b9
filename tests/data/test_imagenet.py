"""The names of ImageNet's classes."""

from __future__ import annotations

from visq.data.imagenet import imagenet_names


def test_names_stand_where_everybody_knows_them() -> None:
    names = imagenet_names()
    assert len(names) == len(set(names)) == 1000
    known = {
        0: "tench",
        1: "goldfish",
        134: "crane (bird)",
        207: "golden retriever",
        281: "tabby",
        999: "toilet tissue",
    }
    assert {index: names[index] for index in known} == known
