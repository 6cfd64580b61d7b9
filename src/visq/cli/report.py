"""`visq report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.output import Output, set_threads


def report(
    targets: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="Artifacts' folders, or one JSON of `visq compare`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The HTML file to write.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Test images; by default the embedded ones for networks made for them."),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", min=1, help="Measure accuracy and agreement on at most so many images, spread over all."
        ),
    ] = 256,
    site_images: Annotated[
        int,
        typer.Option(
            "--site-images", min=1, help="Measure every site on so many images, those of visq diagnose --limit."
        ),
    ] = 16,
    fp32: Annotated[
        str | None,
        typer.Option(
            "--fp32", metavar="NAME|FILE", help="The FP32 model; by default the packaged one that the artifact names."
        ),
    ] = None,
    any_fp32: Annotated[
        bool, typer.Option("--any-fp32", help="Compare with an FP32 model of other weights than the artifact's.")
    ] = False,
    time: Annotated[
        bool, typer.Option("--time", help="Measure latency; the page then differs from run to run.")
    ] = False,
    json_to: options.JsonTo = None,
    threads: options.Threads = None,
    batch: options.Batch = 32,
) -> None:
    """Write one self-contained HTML page about artifacts: verdict, coverage, where the error arises, latency."""
    output = Output(json_to)
    from visq.report import write

    set_threads(threads)
    found = write(
        targets,
        out,
        data=data,
        limit=limit,
        site_images=site_images,
        fp32=fp32,
        any_fp32=any_fp32,
        time=time,
        threads=threads,
        batch_size=batch,
        progress=output.progress,
    )
    for artifact in found["artifacts"]:
        for row in artifact["missing"]:
            option = "" if row["option"] is None else f"; add {row['option']}"
            output.say(f"{artifact['name']}: no {row['what']}: {row['why']}{option}")
    output.say(f"{out}: {out.stat().st_size / 1e3:.0f} kB")
    output.emit(found)
