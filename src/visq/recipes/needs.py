"""Which recipe to take for what: one table, behind `visq recipes --for` and the README's.

Every number is in a file of benchmarks/results, and a test recomputes it (tests/recipes/test_needs.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from visq.errors import VisqError


@dataclass(frozen=True)
class Measured:
    """What one recipe reached on one network.

    Attributes:
        lost: points of top-1 below FP32 on all test images, the mean over seeds.
        bytes: of the artifact, the first seed's.
        file: the file of benchmarks/results that holds it.
    """

    recipe: str
    network: str
    lost: float
    bytes: int
    file: str


@dataclass(frozen=True)
class Need:
    """One row of the table.

    Attributes:
        key: as `visq recipes --for` takes it.
        want: what a user wants, in words.
        images: calibration images, at least.
        calibration: time for 256 images and a Vim-Tiny on two threads.
        engine: speed in words.
        why: the reason for the choice.
        measured: the chosen recipe first, then the ones it was chosen among.
    """

    key: str
    want: str
    recipe: str
    images: int
    calibration: str
    engine: str
    why: str
    measured: tuple[Measured, ...]


_TINY, _MICRO, _MICRO192, _VMAMBA, _NANO = (
    "vim_tiny_imagenette",
    "vim_micro_imagenette",
    "vim_micro192_imagenette",
    "vmamba_nano_imagenette",
    "vim_nano_fmnist",
)

NEEDS = (
    Need(
        "first",
        "a first answer",
        "kscaled-w8a8",
        8,
        "3 minutes",
        "fast",
        "It calibrates quickly and finds most of what there is; where it loses more than a point, visq does not.",
        (
            Measured("kscaled-w8a8", _NANO, 0.16, 718215, "matrix.json"),
            Measured("kscaled-w8a8", _MICRO192, 2.27, 1564175, "imagenette_vim_micro192_imagenette.json"),
            Measured("kscaled-w8a8", _MICRO, 0.15, 1511877, "imagenette_vim_micro_imagenette.json"),
        ),
    ),
    Need(
        "8bit",
        "8 bits, close to FP32",
        "visq-w8a8-fused",
        8,
        "5 minutes",
        "fastest",
        "Within a point of FP32 on every network measured, and the fastest of those. Scope full (visq-w8a8) is as good "
        "within chance, and for comparing methods.",
        (
            Measured("visq-w8a8-fused", _NANO, 0.09, 771852, "matrix.json"),
            Measured("visq-w8a8-fused", _MICRO192, 0.64, 1636096, "fused_vim_micro192_w8a8.json"),
            Measured("visq-w8a8-fused", _MICRO, -0.10, 1578458, "fused_vim_micro_wide.json"),
            Measured("visq-w8a8-fused", _VMAMBA, 0.10, 3706570, "fused_vmamba_nano_imagenette.json"),
            Measured("visq-w8a8", _MICRO192, 0.12, 1689961, "fused_vim_micro192_w8a8.json"),
            Measured("kscaled-w8a8", _MICRO192, 2.27, 1564175, "imagenette_vim_micro192_imagenette.json"),
            Measured("minmax-w8a8", _MICRO192, 15.74, 1294963, "readme_vim_micro192_imagenette.json"),
        ),
    ),
    Need(
        "fast",
        "the least milliseconds",
        "visq-w8a8-fused",
        8,
        "5 minutes",
        "fastest",
        "A Vim-Tiny image takes 11.6 ms where visq-w8a8 takes 13.4 (bench_recipes_vim_tiny.json). Fewer bits are not "
        "faster: visq-w4a8-fused takes 11.6 too. With several states a channel visq-ladder-w8a8 saves another 8 %.",
        (
            Measured("visq-w8a8-fused", _MICRO192, 0.64, 1636096, "fused_vim_micro192_w8a8.json"),
            Measured("visq-w8a8-fused", _VMAMBA, 0.10, 3706570, "fused_vmamba_nano_imagenette.json"),
        ),
    ),
    Need(
        "small",
        "half the weights again",
        "visq-w4a8-fused",
        8,
        "5 minutes",
        "as fast",
        "The smallest of those that lose at most a point. Activations of 4 bits make no artifact smaller. `visq "
        "search` finds a size between or below.",
        (
            Measured("visq-w4a8-fused", _NANO, 0.19, 534806, "matrix.json"),
            Measured("visq-w4a8-fused", _MICRO192, 0.91, 1065904, "fused_vim_micro192_wide.json"),
            Measured("visq-w4a8-fused", _MICRO, -0.05, 1015332, "fused_vim_micro_wide.json"),
            Measured("kscaled-w4a8", _MICRO192, 2.07, 1047169, "imagenette_vim_micro192_imagenette.json"),
            Measured("minmax-w4a8", _MICRO192, 18.16, 843088, "imagenette_vim_micro192_imagenette.json"),
        ),
    ),
    Need(
        "4bit-quick",
        "4 bits throughout, to deploy",
        "visq-rotated-w4a4-fused",
        32,
        "5 minutes",
        "nearly as fast",
        "The best at 4 bits that learns nothing: only what is stored has codes, and linears are rotated.",
        (
            Measured("visq-rotated-w4a4-fused", _NANO, 2.16, 585433, "matrix.json"),
            Measured("visq-rotated-w4a4-fused", _MICRO192, 12.68, 1127632, "fused_vim_micro192_imagenette.json"),
            Measured("visq-rotated-w4a4-fused", _MICRO, 6.19, 1070362, "fused_vim_micro_imagenette.json"),
            Measured("visq-rotated-w4a4-fused", _VMAMBA, 4.44, 2272977, "fused_vmamba_nano_imagenette.json"),
            Measured("visq-w4a4-fused", _MICRO192, 15.25, 1121420, "fused_vim_micro192_imagenette.json"),
        ),
    ),
    Need(
        "4bit",
        "4 bits in scope full",
        "visq-distilled-w4a4",
        256,
        "an hour",
        "nearly as fast",
        "The best at 4 bits with every tensor coded. It learns on the calibration images, so give it many of them: all "
        "but the first network had 1,024.",
        (
            Measured("visq-distilled-w4a4", _NANO, 2.52, 625139, "distilled_256_vim_nano_fmnist.json"),
            Measured("visq-distilled-w4a4", _MICRO192, 6.73, 1191730, "distilled_1024_vim_micro192_imagenette.json"),
            Measured("visq-distilled-w4a4", _VMAMBA, 1.50, 2326797, "distilled_1024_vmamba_nano_imagenette.json"),
            Measured("visq-distilled-w4a4", _TINY, 2.42, 6006955, "distilled_1024_vim_tiny_imagenette.json"),
            Measured("visq-learned-w4a4", _MICRO192, 13.27, 1175298, "readme_vim_micro192_imagenette.json"),
            Measured("visq-learned-w4a4", _VMAMBA, 2.67, 2296022, "readme_vmamba_nano_imagenette.json"),
            Measured("visq-rotated-w4a4", _MICRO192, 17.86, 1181393, "rotated_vim_micro192_imagenette.json"),
        ),
    ),
    Need(
        "baseline",
        "a baseline to compare with",
        "minmax-w8a8",
        4,
        "under a minute",
        "fast",
        "Full ranges, what most toolkits do without being told more.",
        (
            Measured("minmax-w8a8", _NANO, 0.46, 588240, "matrix.json"),
            Measured("minmax-w8a8", _MICRO192, 15.74, 1294963, "readme_vim_micro192_imagenette.json"),
            Measured("minmax-w8a8", _VMAMBA, 1.06, 3261960, "readme_vmamba_nano_imagenette.json"),
        ),
    ),
)

#: The README's columns.
HEADER = ("you want", "recipe", "images, at least", "calibration", "on the engine", "points lost")


def need(key: str) -> Need:
    """Returns the row of a key; raises VisqError that lists the keys."""
    for row in NEEDS:
        if row.key == key:
            return row
    raise VisqError(f"--for knows {', '.join(row.key for row in NEEDS)}, not '{key[:40]}'")


def lost(row: Need) -> str:
    """Returns the least and the most points that the row's recipe lost, over networks."""
    points = [measured.lost for measured in row.measured if measured.recipe == row.recipe]
    return f"{min(points):.1f} to {max(points):.1f}"


def readme_lines() -> list[str]:
    """Returns the table as the README has it."""
    rows = [
        (row.want, f"`{row.recipe}`", str(row.images), row.calibration, row.engine, lost(row))
        for row in NEEDS
        if row.key != "fast"
    ]
    lines = [HEADER, tuple("---" for _ in HEADER), *rows]
    return ["| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "---|" * len(HEADER) for line in lines]
