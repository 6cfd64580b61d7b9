"""`visq search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output, check_file, set_threads
from visq.cli.understood import say_understood
from visq.errors import VisqError
from visq.files import write_text

#: Rows of the table of sites that were kept high.
MOST_ROWS = 12


def search(
    model: Annotated[
        str, typer.Argument(help="A name that `visq models` lists; a family's (`vim`) for any checkpoint.")
    ],
    calib: Annotated[str, typer.Option("--calib", help="Calibration images: `fashion-mnist`, a folder, or a tar.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The recipe file to write, such as recipe.yaml.")],
    base: Annotated[str, typer.Option("--base", help="The packaged method whose bits are searched.")] = "visq-rotated",
    scope: Annotated[
        str | None, typer.Option("--scope", help="The method's scope; its default one if not given.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="bytes=N|bits=N|ms=N", help="Limits, several with commas between them."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", min=0, help="Percent of held-out images that may be decided otherwise than by FP32."
        ),
    ] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Put the worst sites back up until --max-drop holds.")
    ] = False,
    minimize: Annotated[
        str, typer.Option("--minimize", metavar="bytes|bits|ms", help="What --max-drop alone makes small.")
    ] = "bytes",
    bits: Annotated[str, typer.Option("--bits", help="Widths that a site may have, with commas.")] = "3,4,5,6,8",
    samples: options.Samples = 64,
    held_out: Annotated[
        int, typer.Option("--holdout", min=0, help="Images beside the calibration images, which decide.")
    ] = 256,
    probe: Annotated[
        int, typer.Option("--probe", min=1, help="Calibration images that the sensitivity is measured on, at most.")
    ] = 32,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recipe that is there.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the front there.")] = None,
    strict: options.Strict = False,
    threads: options.Threads = None,
    batch: options.Batch = 16,
    json_to: options.JsonTo = None,
    checkpoint: options.Checkpoint = None,
    ema: options.Ema = False,
    image_size: options.ImageSize = None,
    stride: options.Stride = None,
    resize: options.Resize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.Interpolation = None,
    classes: options.Classes = None,
) -> None:
    """Search the bits of every site under a budget, and write them as a recipe.

    What is measured is kept in <out>.search: the same command goes on after an interruption, and another budget needs
    no new measurements.
    """
    output = Output(json_to)
    from visq import pipeline
    from visq.data import open_dataset
    from visq.search import Search, parse_budget, search
    from visq.search.plot import front_svg

    set_threads(threads)
    check_file("--out", out)
    if out.suffix not in (".yaml", ".yml"):
        raise VisqError(f"--out {out}: a recipe file ends in .yaml")
    if out.exists() and not overwrite:
        raise VisqError(f"{out} exists; choose another file or pass --overwrite to replace it")
    if plot is not None:
        check_file("--plot", plot)
    if minimize not in ("bytes", "bits", "ms"):
        raise VisqError(f"--minimize takes bytes, bits or ms, not {minimize!r}")
    wanted = Search(
        base_recipe(base, scope),
        () if budget is None else parse_budget(budget),
        max_drop,
        restore,
        minimize,
        tuple(options.integers("--bits", bits, least=2)),
        probe,
        seed,
        batch,
    )
    model_options = options.ModelOptions(checkpoint, ema, image_size, stride, resize, mean, std, interpolation, classes)
    network = model_options.load(model)
    say_understood(output, network.card)
    source = open_dataset(calib, network.card.preprocess, split="calib", strict=strict)
    dataset, others = pipeline.draw(source, samples, held_out, seed)
    output.say(
        f"{network.card.name}, bits of {wanted.base.family} (scope {wanted.base.scope_name}), {samples} calibration "
        f"images, {0 if others is None else len(others)} held out"
    )
    folder = out.with_name(out.name + ".search")
    found = search(network, wanted, dataset, others, folder=folder, name=out.stem, progress=output.progress)
    output.skipped(dataset.skipped)
    write_text(out, found.text)
    if plot is not None:
        write_text(plot, front_svg(found.document))
    say_found(output, found.document, out, folder)
    output.emit(found.document)


def base_recipe(family: str, scope: str | None) -> Any:
    """Returns a packaged family in a scope, as a recipe."""
    from visq.recipes import Bits
    from visq.recipes.catalog import make_recipe, packaged_methods

    methods = packaged_methods()
    if family not in methods:
        raise VisqError(f"--base takes a packaged method without bits, not {family!r}: {', '.join(methods)}")
    return make_recipe(methods[family], Bits(), scope or methods[family].default_scope)


def say_found(output: Output, document: dict[str, Any], out: Path, folder: Path) -> None:
    """Prints the front, the sites that were kept high, and what was chosen."""
    from visq.search.why import because

    output.say()
    output.table(HEADER, [front_row(point) for point in document["front"]])
    kept = document["kept_high"]
    if kept:
        output.say()
        output.say("Kept above the usual bits of their kind:")
        rows = [(row["sites"][0], str(len(row["sites"])), str(row["width"]), because(row)) for row in kept[:MOST_ROWS]]
        output.table(("site", "sites", "bits", "why"), rows)
        if len(kept) > MOST_ROWS:
            output.say(f"and {len(kept) - MOST_ROWS} more; --json FILE lists all")
    chosen, checked = document["chosen"], document["verified"]
    output.say()
    drop = (
        "" if checked["drop"] is None else f", decides {checked['drop']:.2f} % of held-out images otherwise than FP32"
    )
    output.say(f"{out}: {checked['bytes']:,} bytes{drop}; predicted loss {chosen['predicted_loss']:.4f} nats")
    output.say(f"{folder} keeps the measurements for another budget; delete it when you are done")


HEADER = ("choice", "bytes", "weight bits", "activation bits", "state bits", "ms", "loss", "drop %", "front")


def front_row(point: dict[str, Any]) -> tuple[str, ...]:
    """Returns a point of the front as a row of text."""

    def number(key: str, form: str) -> str:
        return "" if point.get(key) is None else format(point[key], form)

    return (
        point["name"],
        number("bytes", ",.0f"),
        number("weight bits", ".2f"),
        number("activation bits", ".2f"),
        number("state bits", ".2f"),
        number("ms", ".3f"),
        number("predicted_loss", ".4f"),
        number("drop", ".2f"),
        "*" if point["best"] else "",
    )
