"""The whole search: calibrate at all widths, measure, solve, judge, choose, verify."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visq.artifact import artifact_bytes
from visq.calibrate.stage_store import weights_digest
from visq.data import Dataset
from visq.errors import VisqError
from visq.models.family import family_of, image_classes
from visq.pipeline import check_applies, quantize, work_folder
from visq.pipeline.check import Reference, reference
from visq.pipeline.lock import held
from visq.progress import Progress
from visq.quant.site import WEIGHT, named_sites, site_parameter
from visq.recipes import Recipe
from visq.search.budget import Budget, resources, weight_bytes
from visq.search.choose import cheapest, meets, restored, within
from visq.search.document import document
from visq.search.front import Model, Point, cost, searched_points, uniform_points
from visq.search.groups import KINDS, Group, find_groups
from visq.search.judge import Judge, Verdict
from visq.search.latency import Latency, fit
from visq.search.quantizers import Library, calibrate_widths
from visq.search.sensitivity import Probe, correlations, pairs_to_measure, singles
from visq.search.state import MEASURED, Measurements, open_folder

#: Widths that a site may have.
WIDTHS = (3, 4, 5, 6, 8)
#: Calibrations of the chosen recipe before the search gives up on its limits.
VERIFIED = 4


@dataclass(frozen=True)
class Search:
    """What is asked for.

    Attributes:
        base: a packaged family in the scope to search; its bits do not matter.
        budgets: limits that all hold.
        max_drop: percent of held-out images that may get another decision than FP32's.
        restore: put the worst sites back up until `max_drop` holds.
        probed: calibration images that the sensitivity is measured on, at most.
        minimize: the resource that `max_drop` alone makes as small as it can.
    """

    base: Recipe
    budgets: tuple[Budget, ...] = ()
    max_drop: float | None = None
    restore: bool = False
    minimize: str = "bytes"
    widths: tuple[int, ...] = WIDTHS
    probed: int = 32
    seed: int = 0
    batch_size: int = 16

    @property
    def kinds(self) -> tuple[str, ...]:
        """Returns the kinds of bits that what is limited depends on: bytes and milliseconds know weights only."""
        limited = {budget.resource for budget in self.budgets} | {self.resource}
        return KINDS if "bits" in limited else ("weight",)

    @property
    def resource(self) -> str:
        """Returns the resource that the front runs along."""
        return self.budgets[0].resource if self.budgets else self.minimize


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        text: the recipe as YAML.
        recipe: the same as calibration takes it.
        document: everything measured, for JSON.
    """

    text: str
    recipe: Recipe
    document: dict[str, Any]


def search(
    model: Any,
    wanted: Search,
    images: Dataset,
    held_out: Dataset | None,
    *,
    folder: Path,
    name: str = "searched",
    progress: Progress | None = None,
) -> Found:
    """Searches the bits of every site of an FP32 model.

    Arguments:
        images: calibration images; the sensitivity is measured on them too.
        held_out: other calibration images, which decide.
        folder: keeps all that is measured; a search that was killed, or one with another budget, goes on from there.
        name: of the recipe.
    Raises:
        VisqError: bad input of any kind, and limits that cannot be met.
    """
    progress = progress or Progress("silent")
    check_wanted(model, wanted, held_out)
    base = without_learners(wanted.base)
    check_applies(model, base)
    # The folder must exist before it can be locked.
    open_folder(folder, fingerprint(model, wanted, images, held_out))
    with held(folder):
        store = Measurements(folder / MEASURED)
        exact = None if held_out is None else reference(model, held_out, batch_size=32, progress=progress)
        run = _Run(model, wanted, base, images, exact, folder, name, progress, store)
        return run.search()


def check_wanted(model: Any, wanted: Search, held_out: Dataset | None) -> None:
    """Raises VisqError for a wish that makes no sense."""
    if not wanted.budgets and wanted.max_drop is None:
        raise VisqError("nothing limits the search; give --budget, --max-drop, or both")
    if wanted.max_drop is not None and image_classes(model.config) is None:
        raise VisqError("--max-drop counts decisions, and this network has no classes; give --budget")
    if wanted.max_drop is not None and held_out is None:
        raise VisqError("--max-drop needs images beside the calibration images; give more with --calib")
    if wanted.restore and wanted.max_drop is None:
        raise VisqError("--restore puts sites back up until --max-drop holds; give --max-drop")
    if wanted.resource == "ms" and held_out is None:
        raise VisqError("--budget ms= needs images beside the calibration images; give more with --calib")
    if not set(wanted.widths) <= set(range(2, 9)) or len(set(wanted.widths)) < 2:
        raise VisqError(f"--bits takes two or more different numbers from 2 to 8, not {list(wanted.widths)}")


def without_learners(recipe: Recipe) -> Recipe:
    """Returns the recipe as the search calibrates it: learners would cost hours for every choice."""
    return recipe.model_copy(update={"scope": recipe.scope.model_copy(update={"learners": ()})})


def fingerprint(model: Any, wanted: Search, images: Dataset, held_out: Dataset | None) -> dict[str, Any]:
    """Returns what the measurements depend on; budgets are no part of it."""
    return {
        "model": weights_digest(model),
        "base recipe": without_learners(wanted.base).model_copy(update={"name": ""}).digest(),
        "bits": sorted(wanted.widths),
        "kind of budget": list(wanted.kinds),
        "calibration data": images.fingerprint(),
        "held-out images": None if held_out is None else held_out.fingerprint(),
        "drawn images of the sensitivity": wanted.probed,
        "seed": wanted.seed,
        "batch size": wanted.batch_size,
    }


@dataclass
class _Run:
    """One search under way; attributes as the arguments of `search`."""

    model: Any
    wanted: Search
    base: Recipe
    images: Dataset
    exact: Reference | None
    folder: Path
    name: str
    progress: Progress
    store: Measurements

    def search(self) -> Found:
        widths = sorted(self.wanted.widths)
        first = next(self.images.batches(1))[0]
        groups = find_groups(self.model, self.base, first, self.wanted.kinds)
        if not groups:
            raise VisqError(f"recipe {self.base.family} leaves no bits open in this network")
        library = self.library(widths)
        losses, pairs = self.sensitivity(library, groups, widths)
        judge = Judge(library, self.base, groups, self.exact, self.store)
        model = self.costs(library, groups, widths, losses, pairs, judge)
        resource = self.wanted.resource
        self.progress.say("uniform choices, then searched ones:")
        points = uniform_points(model, lambda point: self.say_point(point))
        points += searched_points(model, resource, lambda point: self.say_point(point))
        chosen, checked = self.verified(model, points)
        text, recipe = judge.recipe(chosen.choice, self.name)
        by_group = {
            group: dict(zip(widths, map(float, row), strict=True)) for group, row in zip(groups, losses, strict=True)
        }
        kind_of = family_of(self.model.config).kind_of
        found = document(model, points, chosen, checked, by_group, resource=resource, kind_of=kind_of)
        return Found(text, recipe, {**self.asked(widths), **found, "latency": self.store.values.get("latency")})

    def asked(self, widths: Sequence[int]) -> dict[str, Any]:
        """Returns what was asked for, for the document."""
        wanted = self.wanted
        return {
            "model": self.model.card.name,
            "base": wanted.base.family,
            "scope": wanted.base.scope_name,
            "bits": list(widths),
            "budgets": {budget.resource: budget.limit for budget in wanted.budgets},
            "max_drop": wanted.max_drop,
            "restore": wanted.restore,
            "resource": wanted.resource,
            "images": len(self.images),
            "probed": wanted.probed,
            "held_out_images": 0 if self.exact is None else len(self.exact.images),
        }

    def library(self, widths: Sequence[int]) -> Library:
        """Returns the quantizers at all widths."""
        network = copy.deepcopy(self.model)
        with self.progress.task(f"calibrating at {len(widths)} widths", total=len(network.stages())) as task:
            return calibrate_widths(
                network,
                self.base,
                self.images,
                widths,
                folder=self.folder,
                batch_size=self.wanted.batch_size,
                seed=self.wanted.seed,
                kinds=self.wanted.kinds,
                report=lambda done, name: task.reach(done, note=name),
            )

    def sensitivity(
        self, library: Library, groups: Sequence[Group], widths: Sequence[int]
    ) -> tuple[Any, list[tuple[int, int, float]]]:
        """Returns losses [groups, widths] and the pairs that interact, by index."""
        some_images = self.images.subset(min(self.wanted.probed, len(self.images)), self.wanted.seed)
        probe = Probe(library, groups, some_images, self.wanted.batch_size)
        loss: dict[Group, dict[int, float]] = {}
        with self.progress.task(f"measuring {len(groups)} groups of sites", total=len(groups)) as task:
            for group, found in singles(probe, groups, widths, self.store):
                loss[group] = found
                task.advance(1)
        number = {group: index for index, group in enumerate(groups)}
        some = pairs_to_measure(groups, loss)
        with self.progress.task(f"measuring {len(some)} pairs", total=len(some)) as task:
            pairs = [(number[a], number[b], rho) for a, b, rho in correlations(probe, loss, some, self.store)]
            task.reach(len(some))
        self.progress.say(f"{len(groups)} groups of sites, {len(pairs)} of {len(some)} pairs interact")
        return np.array([[loss[group][width] for width in widths] for group in groups]), pairs

    def costs(
        self,
        library: Library,
        groups: Sequence[Group],
        widths: Sequence[int],
        losses: Any,
        pairs: list[tuple[int, int, float]],
        judge: Judge,
    ) -> Model:
        """Returns the model of losses and costs: bytes from an artifact, milliseconds from profiles if asked for."""
        sizes = {
            name: site_parameter(library.model, name, site).numel()
            for name, site in named_sites(library.model)
            if site.kind == WEIGHT
        }
        whole = judge([widths[-1]] * len(groups)).bytes
        fixed = whole - float(weight_bytes(groups, widths, sizes)[:, -1].sum())
        asked = {budget.resource for budget in self.wanted.budgets} | {self.wanted.resource}
        latency = self.latency(groups, widths, judge) if "ms" in asked else None
        rows = {
            resource: resources(resource, groups, widths, sizes=sizes, fixed_bytes=fixed, latency=latency)
            for resource in ("bytes", *(["ms"] if latency else []), *(["bits"] if len(self.wanted.kinds) > 1 else []))
        }
        return Model(widths, losses, pairs, rows, judge)

    def latency(self, groups: Sequence[Group], widths: Sequence[int], judge: Judge) -> Latency:
        """Returns the model of milliseconds, fitted once for a search's folder."""

        def measure() -> Any:
            profiles = {
                width: judge.profile([width if group.kind == "weight" else widths[-1] for group in groups])
                for width in widths
            }
            if not all(profiles.values()):
                raise VisqError("--budget ms= needs the engine's kernels, which are not installed here")
            return fit(profiles, sum(group.products for group in groups)).to_json()

        found = Latency.from_json(self.store.document("latency", measure))
        self.progress.say(
            "engine, one thread: linears take "
            + ", ".join(f"{ms:.3f} ms at {width} bits" for width, ms in found.linears.items())
            + f"; the rest {found.other:.3f} ms (profiles differ by up to {found.spread:.3f})"
        )
        return found

    def verified(self, model: Model, points: list[Point]) -> tuple[Point, Verdict]:
        """Returns the chosen point and what its recipe reaches when it is calibrated on its own.

        Where the recipe misses a limit, a choice with more room is tried.
        """
        wanted, taken, left = self.wanted, 0.0, list(points)
        start: Point | None = None
        for _ in range(VERIFIED):
            point = self.chosen(model, left, taken, start)
            verdict = self.verify(point, model.judge)
            over = [budget for budget in wanted.budgets if budget.resource == "bytes" and verdict.bytes > budget.limit]
            missed = wanted.max_drop is not None and (verdict.drop or 0.0) > wanted.max_drop + 1e-9
            if not missed and (not over or wanted.restore):
                return point, verdict
            if missed:
                self.progress.say(
                    f"calibrated on its own, the recipe has a drop of {verdict.drop:.2f}; trying more bits"
                )
                left = [p for p in left if cost(p, wanted.resource) > cost(point, wanted.resource)]
                start = model.point("restored", self.higher(model, point)) if wanted.restore else None
            if over:
                taken += verdict.bytes - point.verdict.bytes
            if missed and wanted.budgets and not wanted.restore:
                break
        raise VisqError(
            f"the chosen recipe misses its limits when it is calibrated on its own: {verdict.bytes} bytes, drop "
            f"{'unknown' if verdict.drop is None else f'{verdict.drop:.2f}'}; allow a little more, or give --restore"
        )

    def higher(self, model: Model, point: Point) -> list[int]:
        """Returns a point's choice with the groups that lose most one width up."""
        choice, last = model.indices(point.choice), len(model.widths) - 1
        gains = [model.losses[g, w] - model.losses[g, min(w + 1, last)] for g, w in enumerate(choice)]
        for g in sorted(range(len(choice)), key=lambda g: -gains[g])[: max(1, len(choice) // 20)]:
            choice[g] = min(choice[g] + 1, last)
        return choice

    def chosen(self, model: Model, points: Sequence[Point], taken: float, start: Point | None) -> Point:
        """Returns the point that the wish asks for. Arguments as in `within`, and where restoring starts again."""
        wanted, say = self.wanted, self.progress.say
        if start is not None:
            assert wanted.max_drop is not None
            return restored(model, start, wanted.max_drop, say)
        if wanted.budgets:
            point = within(model, wanted.budgets, taken)
            self.say_point(point)
            if wanted.max_drop is None or meets(point, wanted.max_drop):
                return point
            if wanted.restore:
                return restored(model, point, wanted.max_drop, say)
            enough = cheapest(points, wanted.max_drop, wanted.resource)
            raise VisqError(
                f"within {','.join(map(str, wanted.budgets))} the drop is {point.verdict.drop:.2f} percent, more than "
                f"--max-drop {wanted.max_drop:g}; the least that can is "
                f"{wanted.resource}={cost(enough, wanted.resource):.6g}, or give --restore"
            )
        assert wanted.max_drop is not None
        best = cheapest(points, wanted.max_drop, wanted.resource)
        below = [p for p in points if p.name == "searched" and cost(p, wanted.resource) < cost(best, wanted.resource)]
        if not wanted.restore or not below:
            return best
        dearest = max(below, key=lambda point: cost(point, wanted.resource))
        point = restored(model, dearest, wanted.max_drop, say)
        return point if cost(point, wanted.resource) < cost(best, wanted.resource) else best

    def verify(self, point: Point, judge: Judge) -> Verdict:
        """Returns what a choice's recipe reaches through `pipeline.quantize`, learners included."""
        recipe = judge.recipe(point.choice, self.name)[1]
        digest = recipe.digest()

        def measure() -> dict[str, Any]:
            out = self.folder / f"verified-{digest[:12]}"
            held_out = None if self.exact is None else self.exact.images
            result = quantize(
                copy.deepcopy(self.model),
                recipe,
                self.images,
                seed=self.wanted.seed,
                out=out,
                resume=work_folder(out).exists(),
                overwrite=True,
                batch_size=self.wanted.batch_size,
                held_out=held_out,
                progress=self.progress,
            )
            found = None if result.check is None else result.check.held_out
            rest: dict[str, Any] = {"images": 0, "agree": None, "sqnr_db": None}
            if found is not None:
                rest = {"images": found.images, "agree": found.agree, "sqnr_db": found.sqnr_db}
            return {"bytes": artifact_bytes(out), **rest}

        self.progress.say("calibrating the chosen recipe on its own")
        return Verdict(**self.store.document(f"verified {digest}", measure))

    def say_point(self, point: Point) -> None:
        bits = ", ".join(f"{value:.2f} {name}" for name, value in point.costs.items() if name.endswith(" bits"))
        drop = "" if point.verdict.drop is None else f", {point.verdict.drop:.2f} % decided otherwise"
        self.progress.say(f"  {point.name}: {point.verdict.bytes:,} bytes, {bits}{drop}")
