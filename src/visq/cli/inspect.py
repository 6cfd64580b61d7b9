"""`visq inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.evaluate import engine_report
from visq.cli.output import Output
from visq.cli.quantize import report
from visq.cli.self_check import print_check
from visq.cli.understood import say_understood


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    json_to: options.JsonTo = None,
) -> None:
    """Check an artifact completely and print what it holds."""
    output = Output(json_to)
    from visq.artifact import load_verified
    from visq.runtime import load_engine

    model = load_verified(folder)
    config = model.artifact
    calibration = config.provenance.calibration
    output.say(f"{config.provenance.model}, checkpoint {config.provenance.checkpoint_sha256 or 'of random weights'}")
    say_understood(output, model.card)
    output.say(f"recipe {config.recipe.name} ({config.recipe.title}), scope {config.recipe.scope_name}")
    if calibration is not None:
        output.say(f"calibrated on {calibration.images} images of {calibration.data}, seed {calibration.seed}")
    output.say(f"written by visq {config.visq_version}, schema {config.schema_version}; everything in it was checked")
    if config.program is None:
        output.say(f"no integer program: {config.no_program or 'written by an older visq'}")
    else:
        engine_report(output, load_engine(folder))
    report(output, folder, model, {})
    if config.check is not None:
        print_check(output, config.check)
    else:
        output.say("self-check: none was made")
