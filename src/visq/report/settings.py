"""What a report measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a report measures, and with what.

    Attributes:
        data: images as `visq.data.open_dataset` takes them; None takes the embedded ones for networks made for them.
        limit: images for accuracy and agreement, chosen at random but always the same ones.
        site_images: images for the error of every site, those that `visq.analysis.diagnose` draws; at most `limit`.
        fp32: a model's name or a checkpoint file; None takes the packaged model that the artifact names.
        any_fp32: accepts an FP32 network of other weights than the artifact was made of.
        time: measures latency. The page then differs from run to run.
        threads: processor threads of the engine; None for all.
    """

    data: str | None = None
    limit: int = 256
    site_images: int = 16
    fp32: str | None = None
    any_fp32: bool = False
    time: bool = False
    threads: int | None = None
    batch_size: int = 32
