"""Build the embedded Fashion-MNIST files from the idx files of the Debian package `dataset-fashion-mnist`.

    python tools/embed_fashion_mnist.py /usr/share/datasets/fashion-mnist \\
        --licence /usr/share/doc/dataset-fashion-mnist/copyright

Writes `test.npz` (all 10,000 test images), `calib.npz` (2,048 training images, 205 or 204 a class, in the order of
the original file) and `LICENSE` into src/visq/data/embedded. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np

from visq.data.idx import read_idx_pair

CALIB_IMAGES = 2048
SEED = 0


def balanced_choice(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` sorted indices into `labels` [N] with the classes as equal as the count allows."""
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    share, rest = divmod(count, len(classes))
    picks = [
        rng.choice(np.flatnonzero(labels == label), share + (place < rest), replace=False)
        for place, label in enumerate(classes)
    ]
    return np.sort(np.concatenate(picks))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed npz with the strongest deflate level and a fixed time stamp, so that bytes repeat."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, buffer.getvalue(), compresslevel=9)


def main() -> None:
    """Read the idx files, choose the calibration images and write the three files."""
    parser = argparse.ArgumentParser(description="Build src/visq/data/embedded from the idx files of Fashion-MNIST.")
    parser.add_argument("idx", type=Path, help="folder with {train,t10k}-images-idx3-ubyte.gz")
    parser.add_argument("--licence", type=Path, required=True, help="the copyright file of the package")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src/visq/data/embedded")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    images, labels = read_idx_pair(options.idx, "test")
    write_npz(options.out / "test.npz", images=images, labels=labels)
    images, labels = read_idx_pair(options.idx, "train")
    chosen = balanced_choice(labels, CALIB_IMAGES, SEED)
    write_npz(
        options.out / "calib.npz", images=images[chosen], labels=labels[chosen], source_index=chosen.astype("<i4")
    )
    (options.out / "LICENSE").write_bytes(options.licence.read_bytes())
    for path in sorted(options.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
