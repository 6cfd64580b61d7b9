"""Defines what the file of a paper's table says."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from visq.recipes import Bits, Recipe, Scope, get_recipe


class Published(BaseModel):
    """Holds one number of a table.

    Attributes:
        top1: in percent.
        note: who says so, where it is not the paper's own table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top1: float
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return {"top1": value} if isinstance(value, int | float) else value


class TableRow(BaseModel):
    """Holds one row: how the network is quantized, and the numbers that were published for it.

    Attributes:
        label: the row's name in the paper.
        recipe: a packaged recipe's name; `fp32` for the network as it is.
        scope: in the place of a recipe, what is quantized and how, as in a recipe file; the table's `scope` lies below.
        bits: of weights, activations and states, with `scope`.
        published: by the name of a network, see `Table.networks`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    recipe: str | None = None
    scope: dict[str, Any] | None = None
    bits: Bits = Bits()
    published: dict[str, Published] = {}

    @model_validator(mode="after")
    def _one_of_two(self) -> TableRow:
        if (self.recipe is None) == (self.scope is None):
            raise ValueError(f"row '{self.label}' needs a recipe or a scope, and not both")
        return self


class Table(BaseModel):
    """Holds a table of a paper.

    Attributes:
        name, title, source: as the command line calls it, what it shows, where it stands.
        caveats: sentences on what the paper leaves open, and what is done here.
        model: the family of networks that the checkpoint is of, by default.
        samples: calibration images in the paper.
        networks: for each network of the table, its name and the values of its configuration that tell it apart.
        scope: what the scopes of all rows share.
        rows: in the paper's order, FP32 among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    source: str
    caveats: tuple[str, ...] = ()
    model: str
    samples: int = Field(ge=1)
    networks: dict[str, dict[str, Any]]
    scope: dict[str, Any] = {}
    rows: tuple[TableRow, ...]

    def network(self, config: Any) -> str | None:
        """Returns the name of the table's network that has this configuration; None for any other network."""
        absent = object()
        for name, values in self.networks.items():
            found = {key: getattr(config, key, absent) for key in values}
            if found == {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}:
                return name
        return None

    def recipe(self, row: TableRow) -> Recipe:
        """Returns the recipe of a row.

        Raises:
            VisqError: the row names an unknown one.
        """
        if row.recipe is not None:
            return get_recipe(row.recipe)
        slug = "".join(letter if letter.isalnum() else "-" for letter in row.label.lower())
        return Recipe(
            name=f"{self.name}-{slug}-{row.bits}",
            family=self.name,
            title=f"{self.title}: {row.label}",
            source=self.source,
            scope_name="paper",
            bits=row.bits,
            scope=Scope.model_validate({**self.scope, **(row.scope or {})}),
        )
