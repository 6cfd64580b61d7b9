"""The training loop: epochs of AdamW steps with augmentation, evaluation, and checkpoints a kill cannot spoil."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from visq.device import described, resolve_device, too_little_memory
from visq.errors import VisqError
from visq.files import write_text
from visq.models.checkpoint import geometry_notes, read_checkpoint
from visq.models.family import family_of
from visq.train.config import TrainConfig, differences
from visq.train.inputs import build_model
from visq.train.masks import Masks
from visq.train.optimizer import WeightAverage, learning_rate, make_optimizer
from visq.train.report import EpochLog, Reporter
from visq.train.run_state import RunState, held, read_state, restore, save_state, write_safetensors
from visq.train.step import Step
from visq.train.task import Forward, Labels, Task

#: Steps between two looks at the loss on a GPU, which has to finish its work for that.
LOOK = 10


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        model: file of the float16 weights.
        log: file with one JSON line an epoch.
        metric: name of the score: `top1`, or `mean_iou` of masks.
        score: score of the written file, read back and run in float32 [percent].
        score_raw, score_ema: scores of the weights in memory [percent].
        n: number of evaluated images.
        seconds: time trained, over all resumptions.
        images_per_second: speed of training.
    """

    model: Path
    log: Path
    metric: str
    score: float
    score_raw: float
    score_ema: float | None
    n: int
    seconds: float
    images_per_second: float


def train(config: TrainConfig, *, out: Path, resume: bool = False, progress: bool = True) -> TrainResult:
    """Trains, and leaves `model.safetensors`, `config.yaml`, `log.jsonl` and `checkpoint.safetensors` in `out`.

    Arguments:
        resume: goes on with an interrupted run in `out`, which ends in the same weights as an uninterrupted one.
        progress: shows a bar on a terminal, or a line an epoch.
    Raises:
        VisqError: the configuration does not fit the data or model, `out` holds another run or cannot be written, the
            loss is not finite, or the GPU's memory is full.
    """
    out = Path(out).expanduser()
    with ExitStack() as lock:
        try:
            return _Run(config, out, resume, progress, lock).finish()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise VisqError(f"the run cannot be kept in {out}: {reason}") from error
        except torch.OutOfMemoryError as error:
            raise too_little_memory(resolve_device(config.device), config.batch_size, "--set batch_size=") from error


class _Run:
    """One training run: what lives from the first step to the last."""

    def __init__(self, config: TrainConfig, out: Path, resume: bool, progress: bool, lock: ExitStack) -> None:
        self.config, self.out, self.progress = config, out, progress
        self.checkpoint = out / "checkpoint.safetensors"
        self.device = resolve_device(config.device)
        self.task: Task = Labels(config) if config.masks is None else Masks(config)
        self.classes, self.data = self.task.classes, self.task.data
        self.model = build_model(config, self.classes).to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.ema = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.log = EpochLog(out / "log.jsonl")
        self.done = self._continue_from(resume, lock)
        self.task.load(self.device)
        self.steps = self.task.n // config.batch_size
        if self.steps == 0:
            raise VisqError(f"batch_size {config.batch_size} is more than {self.task.n} images")
        self.forward: Forward = torch.compile(self.model) if config.compile else self.model
        self.step = Step(self.forward, self.task.loss, self.model, self.optimizer, self.ema, config, self.device)
        self.said: str | None = None

    def finish(self) -> TrainResult:
        """Trains the epochs that are left, writes the model, and evaluates the written file."""
        config = self.config
        with Reporter(self.progress, config.epochs, self.steps, self.done.step) as reporter:
            reporter.say(
                f"{sum(p.numel() for p in self.model.parameters()):,} parameters, {self.task.n} "
                f"training and {self.task.eval_n} evaluation images, "
                f"{config.precision} on {described(self.device)}"
            )
            if self.done.epoch:
                reporter.say(f"continuing after epoch {self.done.epoch}")
            while self.done.epoch < config.epochs:
                self._epoch(reporter)
        raw, averaged = self._evaluate()
        path = self.out / "model.safetensors"
        self._write(path)
        geometry = self.model.config
        written = family_of(geometry).unpack(geometry, load_file(path))
        self.model.load_state_dict(written)  # copies into float32 parameters
        trained = self.done.step * config.batch_size
        return TrainResult(
            model=path,
            log=self.log.path,
            metric=self.task.metric,
            score=self.task.score(self.model, self.model, "fp32"),
            score_raw=raw,
            score_ema=averaged,
            n=self.task.eval_n,
            seconds=self.done.seconds,
            images_per_second=trained / self.done.seconds if self.done.seconds else 0.0,
        )

    def _continue_from(self, resume: bool, lock: ExitStack) -> RunState:
        """Returns the state to start from: a checkpoint's when resuming, else the beginning.

        Raises:
            VisqError: `out` holds a run and `resume` is off, or one of another configuration or other images, or
                another process trains there.
        """
        config = self.config.to_yaml()
        self.out.mkdir(parents=True, exist_ok=True)
        lock.enter_context(held(self.out))
        if self.checkpoint.exists() and not resume:
            raise VisqError(f"{self.out} holds a run already: resume it or choose another folder")
        state = RunState(0, 0, 0.0, config, self.data)
        if self.checkpoint.exists():
            state = read_state(self.checkpoint)
            different = differences(state.config, self.config)
            if different:
                raise VisqError(f"{self.checkpoint}: belongs to another configuration ({', '.join(different)})")
            if state.data != self.data:
                raise VisqError(f"{self.checkpoint}: was trained on other images than {self.config.data.train} has now")
            restore(self.checkpoint, self.model, self.optimizer, self.ema)
        write_text(self.out / "config.yaml", config)
        self.log.keep_until(state.epoch)
        return state

    def _epoch(self, reporter: Reporter) -> None:
        """Trains one epoch, then evaluates, logs and saves the run."""
        config, start = self.config, time.perf_counter()
        epoch, step = self.done.epoch, self.done.step
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(self.task.n, generator=generator)
        self.model.train()
        total, unseen = 0.0, list[Tensor]()
        # Stochastic depth draws from the global generator, which belongs to the caller.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(config.seed * 1_000_003 + epoch)
            for batch in order[: self.steps * config.batch_size].split(config.batch_size):
                unseen.append(self._step(batch, generator, step))
                step += 1
                if len(unseen) == (LOOK if self.device.type == "cuda" else 1) or step % self.steps == 0:
                    for loss in self._checked(unseen, step):
                        total += loss
                        reporter.step(loss)
                    unseen = []
        if self.step.why_not and self.step.why_not != self.said:
            self.said = self.step.why_not
            reporter.say(f"steps are not captured in a CUDA graph: {self.step.why_not}")
        seconds = time.perf_counter() - start
        last = epoch + 1 == config.epochs
        entry: dict[str, float | None] = {
            "epoch": epoch + 1,
            "train_loss": total / self.steps,
            "lr": learning_rate(config, step - 1, self.steps),
            "seconds": round(seconds, 3),
            "images_per_second": round(self.steps * config.batch_size / seconds, 1),
        }
        if last or (epoch + 1) % config.eval_every == 0:
            raw, averaged = self._evaluate()
            entry |= {f"{self.task.metric}_raw": raw, f"{self.task.metric}_ema": averaged}
        self.log.append(entry)
        reporter.epoch(entry)
        self.done = RunState(epoch + 1, step, self.done.seconds + seconds, self.done.config, self.data)
        if last or (epoch + 1) % config.checkpoint_every == 0:
            save_state(self.checkpoint, self.model, self.optimizer, self.ema, self.done)

    def _step(self, batch: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Does one optimizer step and returns its loss and the gradient's norm, [2] on the device.

        Arguments:
            batch: [B] int64, indices of training images.
            step: finished steps.
        """
        images, targets = self.task.batch(batch, generator)
        return torch.stack(self.step(images, targets, learning_rate(self.config, step, self.steps), step))

    def _checked(self, measured: list[Tensor], end: int) -> list[float]:
        """Returns the losses of the last steps; `end` is the number of finished steps.

        Raises:
            VisqError: a loss or a gradient is not finite.
        """
        config = self.config
        found = torch.stack(measured).tolist()
        for step, values in enumerate(found, end - len(found)):
            for what, value in zip(("loss", "gradient"), values, strict=True):
                if not math.isfinite(value):
                    rate = learning_rate(config, step, self.steps)
                    raise VisqError(
                        f"{what} is {value} at epoch {step // self.steps + 1}, step {step}, learning rate {rate:.2e}: "
                        f"lower lr (try {config.lr / 3:.1e}) or raise warmup_epochs"
                    )
        return [loss for loss, _ in found]

    def _evaluate(self) -> tuple[float, float | None]:
        """Returns the scores of the raw weights and of their average, None where there is none [percent]."""
        raw = self.task.score(self.forward, self.model, self.config.precision)
        if self.ema is None:
            return raw, None
        with self.ema.applied():
            return raw, self.task.score(self.forward, self.model, self.config.precision)

    def _write(self, path: Path) -> None:
        """Writes the configured weights as float16, under their official names.

        Raises:
            VisqError: a weight does not fit float16.
        """
        weights = dict(self.model.state_dict())
        if self.config.save == "ema" and self.ema is not None:
            weights |= self.ema.shadow
        geometry = self.model.config
        official = averaged(family_of(geometry).pack(geometry, weights), self.config.average_with)
        half = {name: tensor.half() for name, tensor in official.items()}
        damaged = [name for name, tensor in half.items() if not tensor.isfinite().all()]
        if damaged:
            raise VisqError(f"{damaged[0]} does not fit float16")
        notes = {
            **geometry_notes(geometry),
            "preprocess": self.config.data.preprocess,
            "classes": list(self.classes),
        }
        # One entry only: safetensors writes several in a random order, and equal runs must end in equal bytes.
        write_safetensors(path, half, {"visq": json.dumps(notes, sort_keys=True)})


def averaged(weights: dict[str, Tensor], others: Sequence[str]) -> dict[str, Tensor]:
    """Returns the mean of weights and those of other checkpoints, by name.

    Raises:
        VisqError: a checkpoint is of another network.
    """
    if not others:
        return weights
    total = {name: tensor.cpu().double() for name, tensor in weights.items()}
    for path in others:
        found = read_checkpoint(path).tensors
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in total.items()}:
            raise VisqError(f"average_with: {path} holds the weights of another network")
        total = {name: tensor + found[name] for name, tensor in total.items()}
    return {name: (tensor / (1 + len(others))).float() for name, tensor in total.items()}
