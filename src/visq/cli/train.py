"""`visq train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.output import Output, set_threads


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; configs/train holds some.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; runs/<name of CONFIG> by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")] = False,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of CONFIG.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or auto; by default what CONFIG says, or auto.")
    ] = None,
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
) -> None:
    """Train a model from scratch."""
    output = Output(json_to)
    from visq import train as trainer
    from visq.device import resolve_device

    set_threads(threads)
    settings = trainer.load_config(config, [*(override or []), *([f"device={device}"] if device else [])])
    where = resolve_device(settings.device)
    folder = out or Path("runs") / config.stem
    output.kernels(where)
    result = trainer.train(settings, out=folder, resume=resume, progress=output.progress.mode != "silent")
    score = "top-1" if result.metric == "top1" else "mean IoU"
    output.say(f"{score} {result.score:.2f} % on {result.n} images; {result.seconds:.0f} s; weights in {result.model}")
    values = {key.replace("score", result.metric): value for key, value in asdict(result).items() if key != "metric"}
    output.emit({key: str(value) if isinstance(value, Path) else value for key, value in values.items()})
