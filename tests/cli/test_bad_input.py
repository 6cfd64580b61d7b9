"""Whatever is wrong ends in an exit code, one line on stderr that says what to do, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Workplace, kill_when, tiny_model, visq_command, visq_process, write_images
from visq.cli.main import run
from visq.data import FASHION_MNIST_CLASSES
from visq.models import save_checkpoint


def refused(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    """Runs a command line in this process, which must fail with one line on stderr; returns that line."""
    assert run([str(argument) for argument in arguments]) == code
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in captured.out, captured
    return lines[0]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def quantize(place: Workplace, out: Path, name: str = "a", **replaced: object) -> list[object]:
    """Returns a command line that works, with options replaced."""
    options = {"--recipe": "minmax-w8a8", "--calib": place.images, "--samples": 8, "--out": out / name}
    options |= {f"--{key.replace('_', '-')}": value for key, value in replaced.items()}
    model = {"--model": "vim", "--checkpoint": place.checkpoint}
    return ["quantize", *(part for pair in {**model, **options}.items() for part in pair)]


def test_checkpoints(workplace: Workplace, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = refused(capfd, *quantize(workplace, out, checkpoint=tmp_path / "none.safetensors"))
    assert "none.safetensors does not exist" in missing
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(workplace.checkpoint.read_bytes()[:-100])
    assert "cut.safetensors" in refused(capfd, *quantize(workplace, out, checkpoint=cut))
    other = refused(capfd, *quantize(workplace, out, model="vim_tiny"))
    assert "is not vim_tiny" in other and "layers." in other
    broken = tiny_model()
    broken.layers[1].mixer.in_proj.weight[0, 0] = float("nan")
    save_checkpoint(broken, tmp_path / "nan.safetensors")
    nan = refused(capfd, *quantize(workplace, out, checkpoint=tmp_path / "nan.safetensors"))
    assert "NaN" in nan and "layers.1.mixer.in_proj.weight" in nan
    huge = tiny_model()
    huge.layers[0].mixer.in_proj.weight.mul_(1e38)
    save_checkpoint(huge, tmp_path / "huge.safetensors")
    infinite = refused(capfd, *quantize(workplace, out, checkpoint=tmp_path / "huge.safetensors"))
    assert "NaN or Inf" in infinite and "layers.0" in infinite
    assert "unknown model" in refused(capfd, *quantize(workplace, out, model="vim_tiney"))
    assert list(out.iterdir()) == []


def test_images(workplace: Workplace, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "only 24 are there" in refused(capfd, *quantize(workplace, out, samples=25))
    assert "at least 1" in refused(capfd, *quantize(workplace, out, samples=0))
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(capfd, *quantize(workplace, out, calib=tmp_path / "empty"))
    assert "no such folder" in refused(capfd, *quantize(workplace, out, calib=tmp_path / "nowhere"))
    corrupt = write_images(tmp_path / "corrupt", 9)
    (corrupt / "class0/004.png").write_bytes(b"not an image")
    strict = refused(capfd, *quantize(workplace, out, calib=corrupt, samples=9), "--strict")
    assert "class0/004.png cannot be read" in strict
    assert list(out.iterdir()) == []


def test_a_corrupt_image_is_named_skipped_and_counted(
    workplace: Workplace, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corrupt = write_images(tmp_path / "corrupt", 9)
    (corrupt / "class0/004.png").write_bytes(b"not an image")
    done = visq_command(*quantize(workplace, out, calib=corrupt, samples=9))
    assert done.returncode == 0 and "skipped 1 image that cannot be read: class0/004.png" in done.stdout
    assert len(done.stderr.splitlines()) == 1 and "warning: " in done.stderr and "class0/004.png" in done.stderr
    assert json.loads((out / "a/config.json").read_text())["provenance"]["calibration"]["images"] == 8
    assert run(["eval", str(out / "a"), "--data", str(corrupt), "--json", "-"]) == 0
    row = json.loads(capfd.readouterr().out)
    assert row["n"] == 8 and row["skipped"] == ["class0/004.png"]


def test_recipes(workplace: Workplace, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def family(**rule: object) -> Path:
        sites = [{"match": "*.in_proj.weight", "bits": "weight", **rule}]
        path = tmp_path / "own.yaml"
        path.write_text(
            yaml.safe_dump({"name": "own", "title": "", "default_scope": "s", "scopes": {"s": {"sites": sites}}})
        )
        return path

    channels = {"kind": "channel_groups", "k": 100}
    many = refused(capfd, *quantize(workplace, out, recipe=family(match="*.in_proj.in", granularity=channels)))
    assert "k=100" in many and "only 16" in many
    assert "bits" in refused(capfd, *quantize(workplace, out, recipe=family(bits=9)))
    assert "bits must be 2 to 8" in refused(capfd, *quantize(workplace, out, recipe="minmax-w9a9"))
    assert "colour" in refused(capfd, *quantize(workplace, out, recipe=family(colour="red")))
    assert "'*.attention.*' matches no site" in refused(
        capfd, *quantize(workplace, out, recipe=family(match="*.attention.*"))
    )
    assert "did you mean" in refused(capfd, *quantize(workplace, out, recipe="minmaks-w8a8"))
    (tmp_path / "own.yaml").write_text("{[")
    assert "not valid YAML" in refused(capfd, *quantize(workplace, out, recipe=tmp_path / "own.yaml"))
    assert list(out.iterdir()) == []


def test_artifacts(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate = ("eval", workplace.artifact, "--data", workplace.images)
    assert "images of 16 pixels, not 24" in refused(capfd, *evaluate, "--image-size", 24)
    assert "holds no FP32 weights" in refused(capfd, *evaluate, "--backend", "fp32")
    assert "--mean" in refused(capfd, *evaluate, "--mean", "0.5")
    assert "neither" in refused(capfd, "eval", tmp_path / "nowhere", "--data", workplace.images)
    assert "exists" in refused(capfd, *quantize(workplace, workplace.artifact.parent, name="artifact"))

    damaged = tmp_path / "damaged"
    shutil.copytree(workplace.artifact, damaged)
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    assert "model.safetensors: sha256" in refused(capfd, "inspect", damaged)
    edited = tmp_path / "edited"
    shutil.copytree(workplace.artifact, edited)
    text = (edited / "config.json").read_text()
    (edited / "config.json").write_text(text.replace('"images": 8', '"images": 9'))
    assert "config.json: self_hash" in refused(capfd, "eval", edited, "--data", workplace.images)
    assert "no such folder" in refused(capfd, "inspect", tmp_path / "nowhere")


def test_wrong_usage(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "'--data'" in refused(capfd, "eval", "x", code=2)
    assert "No such command 'evl'" in refused(capfd, "evl", code=2)
    assert "--nope" in refused(capfd, "quantize", "--nope", code=2)
    assert "--seeds" in refused(
        capfd, "compare", *workplace.model, "--recipes", "fp32", "--data", workplace.images, "--seeds", "a"
    )
    assert "folder does not exist" in refused(
        capfd, "eval", workplace.artifact, "--data", workplace.images, "--json", tmp_path / "no" / "f.json"
    )
    assert "train.yaml" in refused(capfd, "train", tmp_path / "train.yaml")


def test_outputs_are_checked_before_any_work(
    workplace: Workplace, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done before the outputs were looked at")

    monkeypatch.setattr("visq.models.load_model", never)
    monkeypatch.setattr("visq.artifact.load", never)
    file = tmp_path / "file"
    file.touch()
    assert "is a folder; give a file's name" in refused(capfd, *quantize(workplace, out), "--json", out)
    assert f"--out {file / 'x'}: {file} is no folder" in refused(capfd, *quantize(workplace, file, name="x"))
    evaluate = ("eval", workplace.artifact, "--data", workplace.images)
    assert "its folder does not exist" in refused(capfd, *evaluate, "--json", tmp_path / "no" / "x.json")
    compare = ("compare", *workplace.model, "--recipes", "minmax-w8a8", "--data", workplace.images)
    assert "--markdown" in refused(capfd, *compare, "--markdown", tmp_path / "no" / "x.md")
    diagnose = ("diagnose", workplace.artifact, "--data", workplace.images)
    assert f"--plots {file}" in refused(capfd, *diagnose, "--plots", file)


def test_diagnose_wants_the_network_the_artifact_came_from(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(tiny_model(seed=1), other)
    diagnose = ("diagnose", workplace.artifact, "--data", workplace.images, "--limit", 4)
    line = refused(capfd, *diagnose, "--checkpoint", other)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (workplace.checkpoint, other)]
    assert all(text in line for text in (*hashes, "--any-fp32"))
    assert run([str(part) for part in (*diagnose, "--checkpoint", other, "--any-fp32")]) == 0
    assert run([str(part) for part in (*diagnose, "--checkpoint", workplace.checkpoint)]) == 0
    assert "error against FP32 along the recurrence" in capfd.readouterr().out


def test_unexpected_errors_are_one_line(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("visq.artifact.load_verified", broken)
    line = refused(capfd, "inspect", workplace.artifact)
    assert line == "error: ZeroDivisionError: two lines; this is not expected, use --debug for the traceback"
    assert run(["inspect", str(workplace.artifact), "--debug"]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_full_disk_leaves_nothing(workplace: Workplace, out: Path) -> None:
    """A limit of 16 kilobytes a file stands for a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))

    done = visq_command(*quantize(workplace, out), preexec_fn=limit)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "error: cannot" in done.stderr and "large" in done.stderr.lower()
    assert list(out.iterdir()) == []


def test_kill_and_resume(workplace: Workplace, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After kill -9, another run's state is refused, and the same command ends in the same bytes."""
    command = quantize(workplace, out, samples=24, recipe="kscaled-w4a4")
    work = out / "a.calibration"
    whole = visq_command(*quantize(workplace, tmp_path, samples=24, recipe="kscaled-w4a4"))
    assert whole.returncode == 0, whole.stderr

    kill_when(visq_process(*command), lambda: (work / "stage-000.safetensors").exists())
    assert not (out / "a").exists() and work.exists()
    for replaced in ({"recipe": "kscaled-w8a8"}, {"seed": 1}, {"samples": 20}):
        options = {"samples": 24, "recipe": "kscaled-w4a4", **replaced}
        assert "another" in refused(capfd, *quantize(workplace, out, **options), "--resume")
    other = tmp_path / "other.safetensors"
    save_checkpoint(tiny_model(seed=1), other)
    assert "model" in refused(
        capfd, *quantize(workplace, out, samples=24, recipe="kscaled-w4a4", checkpoint=other), "--resume"
    )
    assert work.exists()

    resumed = visq_command(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("config.json", "model.safetensors"):
        assert (out / "a" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert [path.name for path in out.iterdir()] == ["a"]


def test_interrupt(workplace: Workplace, out: Path) -> None:
    """Ctrl-C keeps the state, says how to go on, and without --resume the state is discarded with a note."""
    command = quantize(workplace, out, samples=24, recipe="ptq4vm-w4a4")  # learning: time enough to be interrupted
    work = out / "a.calibration"
    ended = kill_when(visq_process(*command), lambda: (work / "stage-000.safetensors").exists(), signal.SIGINT)
    assert ended.returncode == 130 and "--resume" in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert work.exists() and not (out / "a").exists()
    again = visq_command(*command)
    assert again.returncode == 0 and "discarding the unfinished calibration" in again.stdout
    assert [path.name for path in out.iterdir()] == ["a"]


def test_eval_hints_at_labels_in_another_order(tmp_path: Path) -> None:
    names = tmp_path / "reversed.txt"
    names.write_text("\n".join(reversed(FASHION_MNIST_CLASSES)))
    command = ("eval", "vim_nano_fmnist", "--data", "fashion-mnist", "--limit", 200)
    wrong, right = visq_command(*command, "--classes", names), visq_command(*command)
    assert wrong.returncode == right.returncode == 0 and right.stderr == ""
    assert wrong.stderr.startswith("warning: top-1 is") and "another order, reversed" in wrong.stderr


def test_paths_of_the_wrong_kind(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipe, text, empty = tmp_path / "pipe.yaml", tmp_path / "text.txt", tmp_path / "empty"
    os.mkfifo(pipe)
    text.write_text("hello")
    empty.mkdir()
    assert "is a mapping" in refused(capfd, "train", pipe)
    assert "must be a mapping" in refused(capfd, *quantize(workplace, tmp_path, recipe=pipe))
    assert f"--classes {pipe} names nothing" in refused(capfd, *quantize(workplace, tmp_path), "--classes", pipe)
    assert "it is a file; give a model's name" in refused(capfd, "bench", text)
    assert "it has no config.json" in refused(capfd, "bench", empty)
    damaged = tmp_path / "damaged"
    shutil.copytree(workplace.artifact, damaged)
    (damaged / "config.json").unlink()
    os.mkfifo(damaged / "config.json")
    for command in ("inspect", "bench"):
        assert "config.json is not valid JSON" in refused(capfd, command, damaged)


def test_no_image_that_can_be_read(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    assert run(["predict", str(workplace.artifact), str(tmp_path)]) == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith("1 of 1 images cannot be read; nothing was classified")


def test_lists_of_numbers_and_names(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    compare = ("compare", *workplace.model, "--data", workplace.images)
    assert "--seeds takes numbers of at least 0, not -1" in refused(
        capfd, *compare, "--recipes", "minmax-w8a8", "--seeds", "0,-1"
    )
    assert "--recipes names nothing" in refused(capfd, *compare, "--recipes", ",")
    assert "--model names nothing" in refused(
        capfd, "compare", "--model", "", "--recipes", "fp32", "--data", workplace.images
    )
    assert "--batch takes numbers of at least 1, not 0" in refused(capfd, "bench", workplace.artifact, "--batch", "1,0")
    assert "--backends names nothing" in refused(capfd, "bench", workplace.artifact, "--backends", "")


def test_what_was_given_is_said(
    workplace: Workplace, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def family(sites: object, **scope: object) -> Path:
        path = tmp_path / "own.yaml"
        scopes = {"s": {"sites": sites, **scope}}
        path.write_text(yaml.safe_dump({"name": "own", "title": "", "default_scope": "s", "scopes": scopes}))
        return path

    weights = {"match": "*.in_proj.weight", "bits": "weight"}
    typo = family([{**weights, "granularity": "chanel"}])
    assert ", not 'chanel'" in refused(capfd, *quantize(workplace, out, recipe=typo))
    unknown = family([weights], transforms=["smoth"])
    assert "error: recipe own-w8a8: unknown transform 'smoth'; known: " in refused(
        capfd, *quantize(workplace, out, recipe=unknown)
    )
    strange = family([{**weights, "colour": "red"}])
    assert "scopes.s.sites.0.colour is no key" in refused(capfd, *quantize(workplace, out, recipe=strange))
    (tmp_path / "own.yaml").write_text("name: own\n")
    assert "recipe" in (line := refused(capfd, *quantize(workplace, out, recipe=tmp_path / "own.yaml")))
    assert "title is missing" in line
    bare = refused(capfd, *quantize(workplace, out, recipe="kscaled"))
    assert "unknown recipe 'kscaled': a name ends in bits, such as kscaled-w8a8, " in bare
    taken = refused(capfd, *quantize(workplace, workplace.images.parent, name=workplace.images.name))
    assert "exists and is not an artifact, so it is not overwritten" in taken
    assert list(out.iterdir()) == []


def test_wrong_usage_shows_where_an_argument_goes(capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(capfd, "eval", "--model", "vim_nano_fmnist", "--data", "fashion-mnist", code=2)
    assert "usage: visq eval [OPTIONS] TARGET" in line and "`visq eval --help`" in line
    assert "usage" not in refused(capfd, "quantize", "vim_nano_fmnist", code=2)
