"""Runs `visq predict`, `visq bench` and `visq eval --backend int` as users do."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import visq
from tests.cli.conftest import Workplace, environment, visq_command, visq_here
from visq.cli.main import run
from visq.errors import VisqError


def test_the_engine_agrees_with_the_simulation(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("eval", workplace.artifact, "--data", workplace.images, "--json", "-")
    simulated, deployed = (json.loads(visq_here(capfd, *command, "--backend", name)) for name in ("sim", "int"))
    assert deployed["backend"] == "int" and list(deployed["kernels"]) == ["engine"]
    assert abs(deployed["top1"] - simulated["top1"]) <= 100 / simulated["n"]
    assert {key: deployed[key] for key in ("recipe", "scope", "n", "bytes")} == {
        key: simulated[key] for key in ("recipe", "scope", "n", "bytes")
    }


def test_predict_names_the_classes(workplace: Workplace, tmp_path: Path) -> None:
    images = sorted(workplace.images.rglob("*.png"))[:3]
    done = visq_command("predict", workplace.artifact, *images, "--top", 2, "--json", tmp_path / "p.json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = json.loads((tmp_path / "p.json").read_text())["predictions"]
    engine = visq.load(workplace.artifact, backend="int")
    for image, row, line in zip(images, rows, done.stdout.splitlines(), strict=True):
        assert row["image"] == str(image) and line.startswith(f"{image}: {row['top'][0]['name']} ")
        expected = engine.predict([image.read_bytes()], top=2)[0]
        assert [entry["index"] for entry in row["top"]] == [prediction.index for prediction in expected]
        assert row["top"][0]["probability"] >= row["top"][1]["probability"] > 0


def test_predict_of_what_is_no_image(workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for image in (tmp_path / "text.png", tmp_path / "missing.png"):
        done = visq_command("predict", workplace.artifact, image)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and image.name in done.stderr


def test_predict_of_folders_and_patterns(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One image that cannot be read does not lose the others, and every form of output names it."""
    images = tmp_path / "images"
    shutil.copytree(workplace.images, images)
    whole = sorted(map(str, images.rglob("*.png")))
    (images / "broken.png").write_text("no image")
    outputs = [("--jsonl", tmp_path / "p.jsonl"), ("--csv", tmp_path / "p.csv"), ("--json", tmp_path / "p.json")]
    for given in ([images], [images / "*.png", images / "**/*[0-9].png"], sorted(images.rglob("*.png"))):
        flat = [str(argument) for pair in outputs for argument in pair]
        command = ["predict", str(workplace.artifact), *map(str, given), "--batch", "3", "--top", "2", *flat]
        assert run(command) == 1
        said = capfd.readouterr()
        broken, last = said.err.splitlines()
        assert broken.startswith("warning: ") and "broken.png cannot be read as an image: its content is not" in broken
        assert last == f"error: 1 of {len(whole) + 1} images cannot be read; the others were classified"
        assert sorted(line.partition(": ")[0] for line in said.out.splitlines()) == whole
        document = json.loads((tmp_path / "p.json").read_text())
        lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
        assert sorted(row["image"] for row in document["predictions"]) == whole
        assert [row["image"] for row in document["errors"]] == [str(images / "broken.png")]
        assert len(lines) == len(whole) + 1 and [row for row in lines if "top" in row] == document["predictions"]
        with open(tmp_path / "p.csv", newline="") as file:
            cells = list(csv.DictReader(file))
        top = [row for row in cells if row["rank"] == "1"]
        assert [float(row["probability"]) for row in top] == [
            row["top"][0]["probability"] for row in document["predictions"]
        ]
        assert len(cells) == 2 * len(whole) + 1


@pytest.mark.parametrize(
    "image,options,message",
    [
        ("empty", (), "empty: no images in this folder"),
        ("none*.png", (), r"none\*\.png: no file matches this pattern"),
        ("missing.png", (), r"missing\.png cannot be read: No such file"),
        ("pipe.png", (), r"pipe\.png cannot be read: not an ordinary file"),
        ("black.png", ("--csv", "nowhere/p.csv"), "--csv nowhere/p.csv: cannot be written"),
        ("black.png", ("--jsonl", "empty"), "--jsonl empty is a folder"),
    ],
)
def test_predict_refuses(
    image: str,
    options: tuple[str, ...],
    message: str,
    workplace: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo("pipe.png")
    Image.new("L", (8, 8)).save("black.png")
    assert run(["predict", str(workplace.artifact), image, *options]) == 1
    said = capfd.readouterr()
    assert len(said.err.splitlines()) == 1 and re.search(message, said.err), said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["black.png", "empty", "pipe.png"]


def test_predict_in_flat_memory(workplace: Workplace, tmp_path: Path) -> None:
    """Images are read batch by batch: a thousand take no more memory than a hundred."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    code = (
        "import sys, visq; from itertools import repeat; from visq.memory import peak_rss;"
        "engine = visq.load(sys.argv[1], backend='int');"
        "go = lambda n: sum(1 for _ in engine.predict_each(repeat(sys.argv[2], n)));"
        "go(100); first = peak_rss(); go(1000); print(peak_rss() - first)"
    )
    command = [sys.executable, "-c", code, str(workplace.artifact), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert int(done.stdout) < 4_000_000


def test_the_runtime_loads_no_torch(workplace: Workplace) -> None:
    image = next(iter(workplace.images.rglob("*.png")))
    code = (
        "import sys, visq; engine = visq.load(sys.argv[1], backend='int'); engine.predict([sys.argv[2]]);"
        "assert not {'torch', 'visq.calibrate', 'visq.models'} & set(sys.modules), 'imported'"
    )
    command = [sys.executable, "-c", code, str(workplace.artifact), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_loads_no_torch_either(workplace: Workplace) -> None:
    image = next(iter(workplace.images.rglob("*.png")))
    code = (
        "import sys; from visq.cli.main import run; assert run(sys.argv[1:]) == 0;"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    command = [sys.executable, "-c", code, "predict", str(workplace.artifact), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_images_are_refused(workplace: Workplace) -> None:
    engine = visq.load(workplace.artifact, backend="int")
    good = np.zeros((2, 1, 16, 16), np.float32)
    assert engine(good).shape == (2, 4)
    for images in (good[0], good.astype(np.float64), good[:, :, :8], good.tolist(), np.full_like(good, np.nan)):
        with pytest.raises(VisqError, match=r"float32|NaN"):
            engine(images)
    assert engine(good[:0]).shape == (0, 4)


def test_an_edited_program_is_refused(workplace: Workplace, tmp_path: Path) -> None:
    shutil.copytree(workplace.artifact, tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    config["program"]["operations"][0]["rows"] += 1
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    with pytest.raises(VisqError, match="self_hash"):
        visq.load(tmp_path / "a", backend="int")


def test_grey_16_bit_and_colour_images_are_taken(workplace: Workplace, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "colour.png")
    engine = visq.load(workplace.artifact, backend="int")
    found = engine.predict([tmp_path / name for name in ("grey.png", "deep.png", "colour.png")], top=1)
    assert len({row[0] for row in found}) == 1


def test_bench_has_every_row(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backends = "int,eager-fp32,plain-pytorch"
    document = tmp_path / "b.json"
    command = ("bench", workplace.artifact, "--batch", "1,2", "--threads", "2,1", "--seconds", 0.01)
    out = visq_here(capfd, *command, "--backends", backends, "--json", document)
    found = json.loads(document.read_text())
    rows, profiles = found["rows"], found["engine_profile_ms_by_threads"]
    assert profiles["2"] == found["engine_profile_ms"] and all(sum(profiles[t].values()) > 0 for t in ("1", "2"))
    expected = [(t, b, n) for t in (2, 1) for n in (1, 2) for b in backends.split(",")]
    assert [(row["threads"], row["backend"], row["batch"]) for row in rows] == expected
    assert all(0 < row["latency_ms"]["median"] <= row["latency_ms"]["p90"] for row in rows)
    # More than the parameters, less than what PyTorch would take to be loaded.
    assert all(1e5 < row["peak_rss_bytes"] < 1e8 for row in rows if row["backend"] == "int")
    for row in rows:
        assert (row["roofline"] is None) == (row["backend"] != "int")
        if row["roofline"] is not None:
            assert set(row["roofline"]) == {"compute_ms", "memory_ms", "fraction"}
            assert all(value > 0 for value in row["roofline"].values())
    assert "2 threads, by operation" in out and "1 threads, by operation" in out
    assert "plain-pytorch" in out and "by operation" in out and "of roofline" in out and "onnx" not in out
    peaks = [row["peak_rss_bytes"] / 1e6 for row in rows if row["backend"] == "int"]
    shown = [line.split()[-1] for line in out.splitlines() if line.startswith("int ")]
    assert "peak MB" in out and shown == [f"{peak:.1f}" for peak in peaks]


def test_predict_turns_photos_upright(workplace: Workplace, tmp_path: Path) -> None:
    """A photo held sideways and its upright copy are one picture; `--as-stored` shows what evaluation sees."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated to the right
    Image.fromarray(np.rot90(pixels, 1).copy()).save(tmp_path / "photo.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    Image.fromarray(np.rot90(pixels, 1).copy()).save(tmp_path / "sideways.png")
    engine = visq.load(workplace.artifact, backend="int")
    photo, upright, sideways = engine.predict([tmp_path / f"{name}.png" for name in ("photo", "upright", "sideways")])
    assert photo == upright != sideways
    assert engine.predict([tmp_path / "photo.png"], upright=False) == [sideways]
    for option, expected in ((), upright), (("--as-stored",), sideways):
        visq_command("predict", workplace.artifact, tmp_path / "photo.png", "--json", tmp_path / "p.json", *option)
        row = json.loads((tmp_path / "p.json").read_text())["predictions"][0]
        assert row["top"][0]["probability"] == expected[0].probability


def test_predict_shows_transparency_over_white_and_says_so_once(workplace: Workplace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / f"{name}.png")
    Image.new("L", (20, 20), 255).save(tmp_path / "white.png")
    engine = visq.load(workplace.artifact, backend="int")
    with pytest.warns(UserWarning, match=r"a\.png has transparent pixels, which are shown over white") as caught:
        first, second, white = engine.predict([tmp_path / f"{name}.png" for name in ("a", "b", "white")])
    assert first == second == white and len(caught) == 1


def test_idle_threads_sleep_soon_but_where_pytorch_is_timed(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's OpenMP says what it was told; what the user says comes first."""

    def spins(*arguments: object) -> str:
        found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", visq_command(*arguments).stderr)
        return found[1] if found else pytest.skip("PyTorch's OpenMP is not libgomp")

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    bench = ("bench", workplace.artifact, "--backends", "int", "--batch", 1)
    assert spins("backends") == "1000"
    default = spins(*bench)
    assert default != "1000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert spins("backends") not in ("1000", default)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert spins("backends") == "77"
