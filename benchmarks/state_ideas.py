"""What each idea for the state of a 4-bit scan is worth, simulated in float32 on training images.

    python benchmarks/state_ideas.py --model vim_micro192_imagenette --calib train-0.tar --data train-1.tar
        [--recipe visq-rotated-w4a4] [--samples 64] [--limit 512] [--inputs 32] [--only "NAME;..."]

The network is calibrated with the recipe. An idea then replaces how the recurrences of all scans round Abar, Bbar and
h; everything else keeps its codes. Its numbers are fitted on the scans' inputs of the calibration images, and measured
on images that took no part: signal to noise of y, given equal inputs, and the decisions of the network.
Finished rows are kept in the results, benchmarks/results/state_ideas_MODEL.json, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import commit, drawn_others, machine, write_json
from visq import ops
from visq.calibrate import calibrate
from visq.data import open_dataset
from visq.data.dataset import mixed
from visq.models import load_model
from visq.models.layers import SelectiveScan
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site_error import decibels
from visq.recipes import get_recipe

#: Images a pass; states are [images, L, N, C].
AT_ONCE = 16


@dataclass(frozen=True)
class Inside:
    """How the inside of one scan is rounded.

    Attributes:
        abar, bbar: quantizers; None leaves the tensor exact.
        scale: [L, N, C] (each may be 1) of the state's codes; None leaves the state exact.
        low, high: the state's codes.
        table: ascending values that stand for the state's codes, in units of `scale`; None for uniform codes.
        residual: bits of the rounding error that the next step gets back; None for none, inf for all of it.
        reads_sum: y reads the sum that is then rounded.
        diffuse: a state's error in y goes into the rounding of the next state of the same step.
        dynamic: `scale` belongs to states whose largest magnitude in an image and step is one.
        correction: [L, C] (each may be 1), added to y.
        dither: the width, in codes, of the interval that the `offsets` fill, which are added before rounding. What is
            rounded away at one position comes back at another.
        spread: offsets differ between states and channels too, not between positions alone.
    """

    abar: Quantizer | None
    bbar: Quantizer | None
    scale: Tensor | None
    low: int = -8
    high: int = 7
    table: Tensor | None = None
    residual: float | None = None
    reads_sum: bool = False
    diffuse: bool = False
    dynamic: Tensor | None = None
    correction: Tensor | None = None
    dither: float = 0.0
    spread: bool = True

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Returns y [B, L, C]; arguments as in `ops.selective_scan`."""
        factors_of_scale = self.rank_one()
        if factors_of_scale is not None:
            state = ops.StateRounding(*factors_of_scale, self.low, self.high, not self.reads_sum)
            sites = {"abar": self.abar, "bbar": self.bbar}
            others = {name: site.scan_argument() for name, site in sites.items() if site is not None}
            y = ops.quantized_scan(u, delta, A, B, C, state=state, **others)
            return y if self.correction is None else y + self.correction
        parts = zip(u.split(AT_ONCE), delta.split(AT_ONCE), B.split(AT_ONCE), C.split(AT_ONCE), strict=True)
        return torch.cat([self.run(*part, A) for part in parts])

    def rank_one(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns the scale as factors of steps, channels and states, where the kernel knows everything else too."""
        others = (self.table, self.residual, self.dynamic)
        if self.scale is None or self.diffuse or self.dither or any(other is not None for other in others):
            return None
        unit = self.scale[:1, :1, :1]
        step, channel, state = self.scale[:, 0, 0], (self.scale[:1, :1] / unit)[0, 0], (self.scale[:1] / unit)[0, :, 0]
        product = step[:, None, None] * state[:, None] * channel
        return (step, channel, state) if torch.allclose(product, self.scale, rtol=1e-4, atol=0) else None

    def run(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor) -> Tensor:
        abar, drive = factors(self.abar, self.bbar, u, delta, A, B)
        state = torch.zeros_like(drive[:, 0])
        y = torch.empty_like(u)
        for t in range(u.shape[1]):
            h = abar[:, t] * state + drive[:, t]
            state, read = self.round(h, t, C[:, t])
            y[:, t] = torch.einsum("bn,bnc->bc", C[:, t], read)
        return y if self.correction is None else y + self.correction

    def round(self, h: Tensor, t: int, C: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the next step and what y reads of h [B, N, C] at step t; C [B, N]."""
        if self.scale is None:
            return h, h
        scale = self.scale[min(t, len(self.scale) - 1)]
        if self.dynamic is not None:
            scale = scale * (h.abs() / self.dynamic).amax((1, 2), keepdim=True).clamp_min(1e-12)
        code = h / scale
        if self.dither:
            code = code + self.dither * self.offsets(t, h)
        if self.residual is not None:
            code = code.clamp(self.low - 0.5, self.high + 0.499)
            kept = code if self.residual == float("inf") else (code * 2**self.residual).round() / 2**self.residual
            return kept * scale, kept.round().clamp(self.low, self.high) * scale
        if self.table is not None:
            rounded = self.table[torch.bucketize(code, (self.table[1:] + self.table[:-1]) / 2)]
        elif self.diffuse:
            rounded = diffused(code, scale, C).clamp(self.low, self.high)
        else:
            rounded = code.round().clamp(self.low, self.high)
        return rounded * scale, h if self.reads_sum else rounded * scale

    def offsets(self, t: int, h: Tensor) -> Tensor:
        """Returns numbers in [-1/2, 1/2) for step t and h [B, N, C]. Multiples of irrational numbers fill it evenly."""
        n, c = torch.arange(h.shape[1])[:, None], torch.arange(h.shape[2])
        spread = 0.7548777 * c + 0.5698403 * n if self.spread else torch.zeros(1)
        return (0.61803399 * t + spread) % 1.0 - 0.5


def diffused(code: Tensor, scale: Tensor, C: Tensor) -> Tensor:
    """Returns codes of every state, up or down so that the sum of C times their errors stays small.

    code [B, N, C], scale [N, C], C [B, N].
    """
    weight = C[:, :, None] * scale
    error = torch.zeros_like(code[:, 0])
    rounded = []
    for n in range(code.shape[1]):
        wanted = code[:, n] - (error / weight[:, n]).nan_to_num(0.0)
        below = code[:, n].floor()
        rounded.append(torch.minimum(torch.maximum(wanted.round(), below), below + 1))
        error = error + weight[:, n] * (rounded[n] - code[:, n])
    return torch.stack(rounded, 1)


def factors(
    abar: Quantizer | None, bbar: Quantizer | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns Abar and Bbar u, [B, L, N, C]."""
    decay = torch.exp(delta[:, :, None] * A.t())
    drive = delta[:, :, None] * B[..., None]
    if abar is not None:
        decay = abar(decay)
    if bbar is not None:
        drive = bbar(drive)
    return decay, drive * u[:, :, None]


class Fit:
    """What the inputs of one scan say, on calibration images.

    Attributes:
        inside: the rounding of the recipe.
        factor: [N, C], r_C r_D of the recipe.
        h: exact states [images, L, N, C].
    """

    def __init__(self, scan: SelectiveScan, inputs: list[Tensor], bits: int = 4) -> None:
        self.u, self.delta, self.A, self.B, self.C = inputs
        quantizers = [site.quantizer for site in (scan.site_abar, scan.site_bbar, scan.site_h)]
        abar, bbar, state = quantizers
        assert isinstance(state, StateQuantizer)
        self.factor = state.state[:, None] * state.channel
        self.inside = Inside(abar, bbar, state.step[:, None, None] * self.factor, state.spec.qmin, state.spec.qmax)
        decay, drive = factors(None, None, self.u, self.delta, self.A, self.B)
        self.h = drive
        for t in range(1, self.u.shape[1]):
            self.h[:, t] += decay[:, t] * self.h[:, t - 1]
        self.exact = torch.einsum("bln,blnc->blc", self.C, self.h)
        self.step = self.scale((0, 2, 3))

    def scale(
        self, over: tuple[int, ...], high: int = 7, table: Tensor | None = None, base: Tensor | None = None
    ) -> Tensor:
        """Returns the scales [L, N, C] of least squared error, one for all of h that lies `over` the given axes.

        Arguments:
            table: what codes stand for; uniform codes without it.
            base: [L, N, C], what is fitted a multiple of; the recipe's factors without it.
        """
        base = self.factor if base is None else base
        unit = self.h / base
        largest = unit.abs().amax(over, keepdim=True)
        largest = largest.clamp_min(1e-6 * float(largest.max())) / high
        best, chosen = torch.full_like(largest, torch.inf), largest
        for share in [*torch.linspace(0.05, 1.2, 23).tolist(), 1.0]:
            code = unit / (largest * share)
            if table is None:
                error = code.round().clamp(-high - 1, high) - code
            else:
                error = table[torch.bucketize(code, (table[1:] + table[:-1]) / 2)] - code
            loss = (error * (largest * share) * base).square().sum(over, keepdim=True)
            chosen = torch.where(loss < best, largest * share, chosen)
            best = torch.minimum(loss, best)
        return (chosen * base)[0]

    def correction(self, over: tuple[int, ...]) -> Tensor:
        """Returns the mean error of y, less its sign, over images and the given axes: [L, C], each may be 1."""
        inside = replace(self.inside, scale=self.step)
        found = inside(self.u, self.delta, self.A, self.B, self.C)
        return (self.exact - found).mean((0, *over), keepdim=True)[0]


def jitter(fit: Fit, ratio: float) -> Tensor:
    """Returns the fitted scales of steps, each times another number between 1 / ratio and ratio."""
    t = torch.arange(len(fit.step))
    return fit.step * (ratio ** (2 * (0.61803399 * t % 1.0) - 1))[:, None, None]


def low_rank(fit: Fit, rank: int) -> Tensor:
    """Returns a scale of h by step and channel whose logarithm is a sum a[t] + b[c] and a matrix of `rank`."""
    logs = (fit.scale((0, 2)) / fit.factor)[:, 0].log()
    sides = logs.mean(1, keepdim=True) + logs.mean(0) - logs.mean()
    left, values, right = torch.linalg.svd(logs - sides, full_matrices=False)
    smooth = sides + (left[:, :rank] * values[:rank]) @ right[:rank]
    return fit.scale((0, 2, 3), base=smooth.exp()[:, None] * fit.factor)


def dynamic(fit: Fit) -> Inside:
    """Returns a scale of each image and step: a multiple, least in squared error, of its largest state."""
    largest = (fit.h / fit.factor).abs().amax((2, 3), keepdim=True).clamp_min(1e-12)
    return replace(fit.inside, scale=fit.scale((0, 2, 3), base=largest * fit.factor) / largest[0], dynamic=fit.factor)


def centres(x: Tensor, weight: Tensor, count: int = 16) -> Tensor:
    """Returns the values of a weighted k-means of x by Lloyd's rule, ascending."""
    found = torch.quantile(x[:: max(1, len(x) // 10000)], torch.linspace(0, 1, count))
    for _ in range(30):
        label = torch.bucketize(x, (found[1:] + found[:-1]) / 2)
        mass = torch.zeros(count).index_add_(0, label, weight)
        total = torch.zeros(count).index_add_(0, label, weight * x)
        found = torch.where(mass > 0, total / mass.clamp_min(1e-30), found).sort().values
    return found


def state_centres(fit: Fit) -> Inside:
    code = fit.h / fit.step
    some = torch.randperm(code.numel(), generator=torch.Generator().manual_seed(0))[: 2**20]
    weight = fit.step.expand(code.shape[1:]).expand_as(code).reshape(-1)[some].square()
    table = centres(code.reshape(-1)[some], weight / weight.mean())
    return replace(fit.inside, scale=fit.scale((0, 2, 3), table=table), table=table)


def bbar_table(fit: Fit) -> Inside:
    """Returns 16 values for Bbar over visq's divisors, least in the squared error of what drives the state."""
    old = fit.inside.bbar
    assert old is not None and old.smooth is not None
    x = (fit.delta[:, :, None] * fit.B[..., None]) / old.smooth
    weight = (fit.u[:, :, None] * old.smooth / fit.factor).square().expand_as(x)
    some = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))[: 2**20]
    weight = weight.reshape(-1)[some]
    table = centres(x.reshape(-1)[some], weight / weight.mean())
    return replace(fit.inside, scale=fit.step, bbar=Quantizer(old.spec, torch.ones(1), smooth=old.smooth, table=table))


#: What each idea does to a scan.
IDEAS: dict[str, Callable[[Fit], Inside]] = {
    "visq, as calibrated": lambda f: f.inside,
    "visq, S[t] fitted here": lambda f: replace(f.inside, scale=f.step),
    "nothing rounded in the recurrence": lambda f: Inside(None, None, None),
    "h exact": lambda f: replace(f.inside, scale=None),
    "Bbar exact": lambda f: replace(f.inside, scale=f.step, bbar=None),
    "Abar exact": lambda f: replace(f.inside, scale=f.step, abar=None),
    "h of 5 bits": lambda f: replace(f.inside, scale=f.scale((0, 2, 3), 15), low=-16, high=15),
    "h of 6 bits": lambda f: replace(f.inside, scale=f.scale((0, 2, 3), 31), low=-32, high=31),
    "h of 8 bits": lambda f: replace(f.inside, scale=f.scale((0, 2, 3), 127), low=-128, high=127),
    "y reads the sum": lambda f: replace(f.inside, scale=f.step, reads_sum=True),
    "error feedback, 1 bit": lambda f: replace(f.inside, scale=f.step, residual=1),
    "error feedback, 2 bits": lambda f: replace(f.inside, scale=f.step, residual=2),
    "error feedback, 4 bits": lambda f: replace(f.inside, scale=f.step, residual=4),
    "error feedback, exact": lambda f: replace(f.inside, scale=f.step, residual=float("inf")),
    "error diffused over the states of a step": lambda f: replace(f.inside, scale=f.step, diffuse=True),
    "codes of Bbar by k-means over visq's divisors": bbar_table,
    "mean error of y by step and channel": lambda f: replace(f.inside, scale=f.step, correction=f.correction(())),
    "mean error of y by channel": lambda f: replace(f.inside, scale=f.step, correction=f.correction((1,))),
    "S[t] times 0.7": lambda f: replace(f.inside, scale=0.7 * f.step),
    "S[t] times 0.5": lambda f: replace(f.inside, scale=0.5 * f.step),
    **{
        f"S[t] that differs from step to step, {r}": lambda f, r=r: replace(f.inside, scale=jitter(f, r))
        for r in (1.1, 1.2, 1.4, 1.8)
    },
    "dither": lambda f: replace(f.inside, scale=f.step, dither=1.0),
    "dither, S[t] as calibrated": lambda f: replace(f.inside, dither=1.0),
    "dither, half a step": lambda f: replace(f.inside, scale=f.step, dither=0.5),
    "dither, S[t] times 0.7": lambda f: replace(f.inside, scale=0.7 * f.step, dither=1.0),
    "dither by the step alone": lambda f: replace(f.inside, scale=f.step, dither=1.0, spread=False),
    "dither, y reads the sum": lambda f: replace(f.inside, scale=f.step, dither=1.0, reads_sum=True),
    "dither, Abar exact": lambda f: replace(f.inside, scale=f.step, dither=1.0, abar=None),
    "S[t] of each image": dynamic,
    "S[t, n]": lambda f: replace(f.inside, scale=f.scale((0, 3))),
    "S[t, c], rank 2 beyond a[t] b[c]": lambda f: replace(f.inside, scale=low_rank(f, 2)),
    "S[t, c]": lambda f: replace(f.inside, scale=f.scale((0, 2))),
    "S[t, c, n]": lambda f: replace(f.inside, scale=f.scale((0,))),
    "codes of h by k-means": state_centres,
}


def record(model: nn.Module, scans: dict[str, SelectiveScan], images: Tensor) -> dict[str, list[Tensor]]:
    """Returns u, delta, A, B, C of every scan in the quantized network, on the given images."""
    found: dict[str, list[list[Tensor]]] = {name: [] for name in scans}

    def hook(name: str, scan: SelectiveScan) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            u, delta, A, B, C = args
            found[name].append([u, scan.site_delta(delta), A, B, scan.site_c(C)])

        return keep

    handles = [scan.register_forward_hook(hook(name, scan)) for name, scan in scans.items()]
    for part in images.split(AT_ONCE):
        model(part)
    for handle in handles:
        handle.remove()

    def joined(parts: list[list[Tensor]]) -> list[Tensor]:
        columns = list(zip(*parts, strict=True))
        return [columns[i][0] if i == 2 else torch.cat(columns[i]) for i in range(5)]

    return {name: joined(parts) for name, parts in found.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True, help="training images that are not calibrated with")
    parser.add_argument("--recipe", default="visq-rotated-w4a4")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument(
        "--inputs", type=int, default=32, help="images whose scans are kept to fit on, and as many to measure y on"
    )
    parser.add_argument("--only", help="names of ideas with semicolons; all by default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / "results" / f"state_ideas_{args.model}.json"
    of = {"model": args.model, "recipe": args.recipe, "samples": args.samples, "images": args.limit}
    of["inputs"] = args.inputs
    of["chosen"] = "drawn"  # scans were those of the first images
    rows: list[dict[str, Any]] = []
    if out.exists():
        before = json.loads(out.read_text())
        if {key: before.get(key) for key in of} != of:
            raise SystemExit(f"{out} is of another model or other numbers of images: delete it, or choose --out")
        rows = before["rows"]
    model = load_model(args.model).eval()
    card = model.card
    source = open_dataset(args.calib, card.preprocess, split="calib", classes=card.classes)
    chosen = source.drawn(args.samples, 0)
    calibration = source.select(chosen)
    held = open_dataset(args.data, card.preprocess, split="train", classes=card.classes)
    taken = set(chosen) if args.data == args.calib else set()
    others = held.select(drawn_others(held, args.limit, taken, 1))
    batches = list(others.batches(AT_ONCE))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    exact = torch.cat([model(part) for part in images.split(AT_ONCE)])
    of_fp32 = {"fp32_top1": 100 * float((exact.argmax(1) == labels).double().mean())}

    with tempfile.TemporaryDirectory() as folder:
        calibrate(model, get_recipe(args.recipe), calibration, work_dir=Path(folder))
    scans = {name: module for name, module in model.named_modules() if isinstance(module, SelectiveScan)}
    seen = torch.cat([batch for batch, _ in mixed(calibration, args.inputs, 0).batches(AT_ONCE)])[: args.inputs]
    fitted = record(model, scans, seen)
    tested = record(model, scans, images[others.drawn(min(args.inputs, len(others)), 0)])
    fits = {name: Fit(scan, fitted[name]) for name, scan in scans.items()}
    truth = {name: ops.selective_scan(*inputs) for name, inputs in tested.items()}
    wanted = list(IDEAS) if args.only is None else args.only.split(";")
    recurrences = {name: scan.recurrence for name, scan in scans.items()}
    for idea in wanted:
        if any(row["idea"] == idea for row in rows):
            continue
        inside = {name: IDEAS[idea](fit) for name, fit in fits.items()}
        noise = []
        for name in scans:
            error = inside[name](*tested[name]) - truth[name]
            noise.append(decibels(float(truth[name].square().sum()), float(error.square().sum())))
            scans[name].recurrence = inside[name]  # type: ignore[assignment]
        found = torch.cat([model(part) for part in images.split(AT_ONCE)])
        for name, scan in scans.items():
            scan.recurrence = recurrences[name]
        finite = [x for x in noise if x is not None]
        logs = found.log_softmax(-1), exact.log_softmax(-1)
        rows.append(
            {
                "idea": idea,
                "y_db": sum(finite) / len(finite) if finite else None,
                "worst_y_db": min(finite) if finite else None,
                "kl": float(F.kl_div(*logs, log_target=True, reduction="batchmean")),
                "same": 100 * float((found.argmax(1) == exact.argmax(1)).double().mean()),
                "top1": 100 * float((found.argmax(1) == labels).double().mean()),
                "commit": commit(),
            }
        )
        print({key: rows[-1][key] for key in ("idea", "y_db", "kl", "same", "top1")}, flush=True)
        write_json(out, {**of, **of_fp32, "scans": len(scans), "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()
