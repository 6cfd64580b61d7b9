"""`visq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output, megabytes

if TYPE_CHECKING:
    from visq.data import Dataset


def bench(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An artifact's folder or a model's name.")],
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes with commas between them.")] = "1,8",
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads", help="Numbers of processor threads with commas between them; all of them by default."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="Time for each contender and batch size.")] = 3.0,
    backends: Annotated[
        str | None,
        typer.Option(
            "--backends",
            help="Only these: int, cuda, eager-fp32, compile-bf16, plain-pytorch, onnxruntime-fp32, openvino-int, ...",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Labelled images, as in `visq eval`: the top-1 of every contender on them."),
    ] = None,
    limit: options.Limit = None,
    device: options.Device = "cpu",
    json_to: options.JsonTo = None,
) -> None:
    """Time the integer engine beside PyTorch (eager, compiled, torchao's int8), onnxruntime and OpenVINO."""
    output = Output(json_to)
    import torch

    from visq.analysis.bench import bench as measure
    from visq.analysis.machine import machine, versions
    from visq.artifact import artifact_bytes, is_artifact
    from visq.device import described, resolve_device
    from visq.models import load_model
    from visq.native.threads import checked_threads

    where = resolve_device(device)
    counts = [torch.get_num_threads()] if threads is None else options.integers("--threads", threads)
    counts = [checked_threads(count) for count in counts]
    batches = options.integers("--batch", batch, least=1)
    folder = Path(target)
    subject = folder if is_artifact(folder) or folder.is_dir() else load_model(target)
    images = None if data is None else labelled_images(subject, data, limit)
    if where.type != "cpu":
        output.kernels(where)
    rows, profiles = [], []
    for index, count in enumerate(counts):
        found, profile = measure(
            subject,
            batches=batches,
            threads=count,
            seconds=seconds,
            backends=None if backends is None else options.names("--backends", backends),
            repeats=len(counts) - index,
            data=images,
            progress=output.progress,
            device=where,
        )
        rows += found
        profiles.append(profile)
    first = {
        (row["threads"], row["batch"]): row["latency_ms"]["median"]
        for row in rows
        if row["backend"] == rows[0]["backend"]
    }
    lines = [
        (
            row["backend"],
            str(row["batch"]),
            str(row["threads"]),
            f"{row['latency_ms']['median']:.2f}",
            f"{row['latency_ms']['p90']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{row['latency_ms']['median'] / first[row['threads'], row['batch']]:.2f}",
            "equal" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB",
            "" if row["top1"] is None else f"{row['top1']:.2f}",
            f"{100 * row['roofline']['fraction']:.0f} %" if row["roofline"] else "",
            f"{row['peak_rss_bytes'] / 1e6:.1f}" if row["peak_rss_bytes"] else "",
        )
        for row in rows
    ]
    output.say(rows[0]["name"] if rows else "nothing was measured")
    reference = f"x {rows[0]['backend']}"
    output.table(
        (
            "backend",
            "batch",
            "threads",
            "median ms",
            "p90 ms",
            "images/s",
            reference,
            "to FP32, on noise" if images is None else "to FP32",
            "top-1",
            "of roofline",
            "peak MB",
        ),
        lines,
    )
    for count, profile in zip(counts, profiles, strict=True):
        total = sum(profile.values())
        parts = ", ".join(
            f"{kind} {ms:.2f} ms ({100 * ms / total:.0f} %)"
            for kind, ms in sorted(profile.items(), key=lambda part: -part[1])
            if ms >= 0.005 * total
        )
        if parts:
            output.say(f"engine, batch 1, {count} threads, by operation: {parts}")
    size = artifact_bytes(folder) if isinstance(subject, Path) else None
    if size is not None:
        output.say(f"{megabytes(size)} on disk")
    output.emit(
        {
            "rows": rows,
            "engine_profile_ms": profiles[0],
            "engine_profile_ms_by_threads": dict(zip(map(str, counts), profiles, strict=True)),
            "bytes": size,
            "device": described(where),
            "machine": machine(),
            "versions": versions(),
        }
    )


def labelled_images(subject: Any, data: str, limit: int | None) -> Dataset:
    """Returns the images of `--data`, prepared as the model or artifact wants them."""
    from visq.analysis.evaluate import limited
    from visq.artifact import load
    from visq.data import open_dataset

    card = load(subject).card if isinstance(subject, Path) else subject.card
    return limited(open_dataset(data, card.preprocess, split="test", classes=card.classes), limit)
