"""The tables as files: every row is a recipe of the network it is for, and official networks are known."""

from __future__ import annotations

import pytest

from visq.errors import VisqError
from visq.models import create_model, list_models
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.reproduce import get_table, table_names, to_markdown
from visq.reproduce.report import remarks, table_lines
from visq.reproduce.schema import Table, TableRow

VIM = dict(image_size=16, patch_size=4, stride=4, channels=1, embed_dim=16, depth=1, d_state=4, num_classes=4)
VMAMBA = dict(image_size=32, channels=3, embed_dim=8, depths=(1, 1), num_classes=4)


def row(table: Table, label: str) -> TableRow:
    return next(row for row in table.rows if row.label == label)


@pytest.mark.parametrize("name", table_names())
def test_every_row_is_a_recipe_of_its_own(name: str) -> None:
    table = get_table(name)
    assert table.name == name and table.rows[0].recipe == "fp32" and table.caveats
    recipes = [table.recipe(row) for row in table.rows]
    assert len({recipe.name for recipe in recipes}) == len({row.label for row in table.rows}) == len(recipes)
    networks = [create_model("vim", **VIM)]
    networks += [create_model("vmamba", **VMAMBA)] if any("VMamba" in known for known in table.networks) else []
    for network in networks:
        sites = [site for site, _ in named_sites(network)]
        for recipe in recipes[1:]:
            assert recipe.resolve(sites), recipe.name
    assert all(row.published.keys() <= table.networks.keys() for row in table.rows)


def test_the_papers_choice_is_the_packaged_recipe() -> None:
    table = get_table("kscaled-table2")
    assert len(table.rows) == 2 + 5 * 4
    assert table.recipe(row(table, "Mean / Std")).scope == get_recipe("kscaled-w8a8-paper").scope
    assert row(table, "Mean / Std").published["Vim-T"].top1 == 75.3
    assert not table.recipe(row(table, "None")).scope.transforms


def test_official_networks_are_known_by_their_sizes() -> None:
    cards = {card.name: card for card in list_models()}
    third, ptq4vm = get_table("kscaled-table3"), get_table("ptq4vm")
    assert third.network(cards["vim_tiny"].config) == "Vim-T"
    assert third.network(cards["vim_small"].config) == ptq4vm.network(cards["vim_small"].config) == "Vim-S"
    assert third.network(cards["vim_nano_fmnist"].config) is None


def test_a_row_is_a_recipe_or_a_scope() -> None:
    for given in ({}, {"recipe": "fp32", "scope": {}}):
        with pytest.raises(ValueError, match="a recipe or a scope, and not both"):
            TableRow.model_validate({"label": "x", **given})
    with pytest.raises(VisqError, match="unknown table 'table9'; there are kscaled-table1"):
        get_table("table9")


def test_published_numbers_stand_beside_ours_with_who_says_so() -> None:
    table = get_table("qmamba")
    measured = {"weight_bits": 4, "activation_bits": 4, "state_bits": 4, "top1": 50.0, "drop": 30.0, "p_value": 0.0}
    published = {name: number.model_dump() for name, number in row(table, "W4A4").published.items()}
    rows = [
        {**measured, "label": "W4A4", "recipe": "qmamba-w4a4", "published": published, "top1": top1}
        for top1 in (49, 51)
    ]
    header, lines = table_lines(table, rows)
    assert header[2] == "Vim-S, published" and lines[0][2] == "33.64 (quoted by others, elsewhere 68.50)"
    assert lines[0][4] == "50.00 ± 1.41"
    network = create_model("vim", **VIM)
    settings = {"samples": 8, "calib": "a", "data": "b", "n": 24, "device": "cpu"}
    notes = remarks(table, network, settings)
    assert "none of the table's" in notes[0] and "8 images (the paper: 1024) of a, measured on 24 of b" in notes[1]
    text = to_markdown(table, rows, notes)
    assert "| W4A4 | 4/4/4 | 33.64 (quoted" in text and "reconstruction" in text
