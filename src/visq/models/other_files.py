"""Recognizes files that are no checkpoints, so that the message can say what to do."""

from __future__ import annotations

from pathlib import Path

from visq.files import read_bytes
from visq.models.names import printable

#: (first bytes, kind of the file, advice)
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer instead of the weights",
        "fetch them with `git lfs pull`, or download the file from the repository's web page",
    ),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"(\xb5/\xfd", "compressed with zstd", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras)", "give weights that torch saved"),
    (b"GGUF", "a GGUF file", "give weights that torch saved"),
    (b"\x93NUMPY", "a NumPy array", "give a file with all tensors of the network"),
    (b"\x89PNG", "an image", "give a .safetensors or .pth file"),
    (b"\xff\xd8\xff", "an image", "give a .safetensors or .pth file"),
    (b"%PDF", "a PDF", "give a .safetensors or .pth file"),
    (b"\x08\x03\x12", "an ONNX model, as it seems", "give the checkpoint that it was exported from"),
    (b"\x08\x07\x12", "an ONNX model, as it seems", "give the checkpoint that it was exported from"),
    (b"\x08\x08\x12", "an ONNX model, as it seems", "give the checkpoint that it was exported from"),
)


def described(path: Path, head: bytes) -> tuple[str, str]:
    """Returns (kind, advice) from a file's name and first 300 bytes; the kind is empty when it is unknown."""
    for beginning, kind, advice in _BEGINNINGS:
        if head.startswith(beginning):
            return kind, advice
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "an image", "give a .safetensors or .pth file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page", "download the file itself, not the page that shows it"
    if path.name.endswith(".index.json"):
        return "the index of a checkpoint in several files", "merge them into one .safetensors file"
    if text.startswith((b"{", b"[")):
        shown = printable(head[:60].decode("latin1"))
        return f"a JSON file ({shown})", "give the .safetensors or .pth file it belongs to"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it first"
    if head and all(byte in b"\t\r\n\x0c" or byte >= 32 for byte in head) and _is_text(head):
        return "a text file", "give a .safetensors or .pth file"
    return "", "download it again or give another file"


def _is_text(head: bytes) -> bool:
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def of_artifact(path: Path) -> str | None:
    """Returns advice about the tensors of an artifact, as the end of a sentence; None for other files."""
    if path.name != "model.safetensors" or not _is_artifact(path.parent):
        return None
    return "holds the tensors of a quantized artifact, not a checkpoint; give its folder as TARGET"


def in_folder(path: Path) -> str:
    """Returns advice about a folder, as the end of a sentence."""
    try:
        names = sorted(file.name for file in path.iterdir())
    except OSError:
        names = []
    files = [name for name in names if name.endswith((".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar"))]
    if "config.json" in names and "model.safetensors" in names and _is_artifact(path):
        return "is an artifact's folder, not a checkpoint; give it as TARGET, or the checkpoint it was made of"
    if any(name.endswith(".distcp") for name in names):
        return "is a distributed checkpoint; convert it with `python -m torch.distributed.checkpoint.format_utils`"
    if files:
        return f"is a folder; give one of its files: {', '.join(files[:3])}{', ...' * (len(files) > 3)}"
    return "is a folder; give a checkpoint file (.safetensors or .pth)"


def _is_artifact(path: Path) -> bool:
    try:
        return b'"schema_version"' in read_bytes(path / "config.json")
    except OSError:
        return False
