"""Puts the commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from visq._version import __version__
from visq.cli import (
    bench,
    compare,
    demo,
    diagnose,
    evaluate,
    export,
    inspect,
    listing,
    predict,
    quantize,
    report,
    reproduce,
    search,
    segment,
    train,
    upscale,
)

app = typer.Typer(
    name="visq",
    help="Post-training quantization for Vision Mamba: calibrate, measure, save, compare.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def show_version(value: bool) -> None:
    if value:
        print(f"visq {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks; may stand anywhere on the line.")] = False,
) -> None:
    pass


app.command("demo")(demo.demo)
app.command("models")(listing.models)
app.command("recipes")(listing.recipes)
app.command("backends")(listing.backends)
app.command("train")(train.train)
app.command("quantize")(quantize.quantize)
app.command("search")(search.search)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("reproduce")(reproduce.reproduce)
app.command("predict")(predict.predict)
app.command("upscale")(upscale.upscale)
app.command("segment")(segment.segment)
app.command("bench")(bench.bench)
app.command("inspect")(inspect.inspect)
app.command("diagnose")(diagnose.diagnose)
app.command("export")(export.export)
app.command("report")(report.report)
