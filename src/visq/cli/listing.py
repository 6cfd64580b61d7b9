"""Lists what there is: `visq models`, `visq recipes`, `visq backends`."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output


def models(
    name: Annotated[str | None, typer.Argument(help="A model whose sites to list.")] = None,
    json_to: options.JsonTo = None,
) -> None:
    """List the models known by name, or the sites of one: the names a recipe's patterns match."""
    output = Output(json_to)
    from visq.models import ModelCard, list_models
    from visq.models.family import families, image_size, num_classes

    if name is not None:
        list_sites(name, output)
        return

    def line(card: ModelCard) -> tuple[str, ...]:
        config, size = card.config, image_size(card.config)
        depths = getattr(config, "depths", None) or (getattr(config, "depth", ""),)
        return (
            card.name,
            f"{config.channels}x{size}x{size}" if size else f"{config.channels} x any size",
            str(getattr(config, "embed_dim", "")),
            "+".join(map(str, depths)),
            str(num_classes(config) or ""),
            f"{card.published_top1:.1f}" if card.published_top1 else "",
            "included" if card.weights else "--checkpoint",
            card.alias_of or card.description,
        )

    cards = list_models()
    official = {card.alias_of for card in cards}
    header = ("name", "images", "width", "depth", "classes", "published top-1", "weights", "")
    output.table(header, [line(card) for card in cards if card.name not in official])
    output.say("Official names work as well as the short ones.")
    generic = ", ".join(f"{family.name} (any {family.title})" for family in families().values())
    output.say(f"With --checkpoint FILE, --model also takes {generic}; the geometry is read from the file.")
    output.emit([{**asdict(card), "preprocess": card.preprocess.to_dict()} for card in cards])


def list_sites(name: str, output: Output) -> None:
    """Prints a line for all sites that differ in a number only: blocks, directions."""
    from visq.models import create_model
    from visq.quant.site import named_sites

    sites = {site: module.kind for site, module in named_sites(create_model(name))}
    alike: dict[tuple[str, str], int] = {}
    for site, kind in sites.items():
        key = re.sub(r"\.\d+(?=\.)", ".*", site), kind
        alike[key] = alike.get(key, 0) + 1
    output.table(("site", "kind", "how many"), [(*key, str(count)) for key, count in alike.items()])
    output.emit(sites)


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to describe in full.")] = None,
    purpose: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="8bit|fast|small|4bit", help="Say which recipe to take for what you need, and why."
        ),
    ] = None,
    json_to: options.JsonTo = None,
) -> None:
    """List the packaged recipes, describe one, or say which to take."""
    output = Output(json_to)
    from visq.recipes import Recipe, get_recipe, list_recipes

    if purpose is not None:
        say_recommended(purpose, output)
        return

    if name is not None:
        recipe = get_recipe(name)
        for line in describe(recipe):
            output.say(line)
        output.emit(recipe.model_dump(mode="json"))
        return
    found = list_recipes()
    groups: dict[tuple[str, str], list[Recipe]] = {}
    for recipe in found:
        groups.setdefault((recipe.family, recipe.scope_name), []).append(recipe)
    lines = [
        (same[0].name, scope, ", ".join(str(r.bits) for r in same if r.scope.sites), same[0].title, same[0].source)
        for (_, scope), same in groups.items()
    ]
    output.table(("name", "scope", "bits", "method", "source"), lines)
    output.say("The bits of a name may be any from 2 to 8: kscaled-w4a8, or kscaled-w4a4h8 with the hidden state at 8.")
    output.say("`visq recipes NAME` says what a recipe does; a YAML file of your own is used like a name.")
    output.emit([recipe.model_dump(mode="json") for recipe in found])


def say_recommended(purpose: str, output: Output) -> None:
    """Prints the recipe for a need, the reason, and the measurements behind it."""
    from visq.recipes.needs import need

    row = need(purpose)
    output.say(f"{row.want}: {row.recipe}")
    output.say(row.why)
    output.say(f"At least {row.images} calibration images; {row.calibration} for 256 and a Vim-Tiny; {row.engine}.")
    lines = [(m.recipe, m.network, f"{m.lost:.2f}", f"{m.bytes:,}", m.file) for m in row.measured]
    output.table(("recipe", "network", "points lost", "bytes", "benchmarks/results"), lines)
    output.emit(asdict(row))


def describe(recipe: Any) -> list[str]:
    """Returns a recipe in lines of text."""
    lines = [f"{recipe.name}: {recipe.title}" + (f" ({recipe.source})" if recipe.source else "")]
    lines.append(f"scope {recipe.scope_name}, bits {recipe.bits}")
    for what in ("transforms", "learners"):
        for named in getattr(recipe.scope, what):
            lines.append(f"{what[:-1]} {_named(named)}")
    for rule in recipe.scope.sites:
        if rule.skip:
            lines.append(f"left alone: {', '.join(rule.match)}")
            continue
        spec = rule.spec(recipe.bits)
        form = "symmetric" if spec.symmetric else "with zero point"
        if spec.granularity.kind == "ladder":
            beyond = f"per channel in {spec.bits} bits beyond {spec.granularity.limit:g}"
            lines.append(f"a decay ladder without codes, {beyond}: {', '.join(rule.match)}")
            continue
        words = [f"{spec.bits} bits {form}", f"per {_granularity(spec)}", f"range by {_named(spec.estimator)}"]
        if spec.codebook.name != "uniform":
            words.append(f"codebook {_named(spec.codebook)}")
        lines.append(f"{', '.join(words)}: {', '.join(rule.match)}")
    return lines


def _named(named: Any) -> str:
    params = ", ".join(f"{key}={value}" for key, value in named.params.items())
    return named.name + (f" ({params})" if params else "")


def _granularity(spec: Any) -> str:
    from visq.integer.spec import describe_granularity

    return describe_granularity(spec).replace("_", " ")


def backends(device: options.Device = "cpu", json_to: options.JsonTo = None) -> None:
    """Say which kernel computes each op on this machine, and why a faster one does not."""
    output = Output(json_to)
    from visq.analysis.machine import machine, versions
    from visq.device import resolve_device
    from visq.ops import backends as ops

    # Of a GPU that is not there, the reasons are what is asked for.
    choices = ops.describe("cuda" if device == "cuda" else resolve_device(device).type)
    lines = [
        (op, choice.kernel, "; ".join(f"{n}: {why}" for n, why in choice.not_used)) for op, choice in choices.items()
    ]
    output.table(("op", "kernel", "not used"), lines)
    found = machine()
    output.say(f"{found['processor']}, {found['cores']} cores, {found['threads']} threads")
    used = {op: {"kernel": choice.kernel, "not_used": dict(choice.not_used)} for op, choice in choices.items()}
    output.emit({"ops": used, "machine": found, "versions": versions()})
