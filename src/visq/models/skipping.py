"""Defines skip sampling of maps: every second position of every second row, and the four samples put together again.

EfficientVMamba scans each sample by itself, a quarter of the positions. A map with an odd side is padded with zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Distance of sampled positions along each side.
STEP = 2


class SampleMap(nn.Module):
    """Takes the positions (row + 2 i, column + 2 j). [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C].

    Arguments:
        row, column: the first position, each 0 or 1.
        by_columns: whether the result is transposed, [B, ceil(W / 2), ceil(H / 2), C].
    """

    def __init__(self, row: int, column: int, by_columns: bool = False) -> None:
        super().__init__()
        self.row, self.column, self.by_columns = row, column, by_columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        sample = F.pad(x, (0, 0, 0, width % STEP, 0, height % STEP))[:, self.row :: STEP, self.column :: STEP]
        return sample.transpose(1, 2) if self.by_columns else sample


class MergeSamples(nn.Module):
    """Undoes four `SampleMap`. Four [B, L, C] -> [B, H W, C], row by row.

    Arguments:
        samples: where each of the four comes from; together they have every position.
    """

    def __init__(self, samples: tuple[SampleMap, ...]) -> None:
        super().__init__()
        self.places = tuple((sample.row, sample.column, sample.by_columns) for sample in samples)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, height: int, width: int) -> Tensor:
        rows, columns = -(-height // STEP), -(-width // STEP)
        maps = {}
        for (row, column, by_columns), part in zip(self.places, (a, b, c, d), strict=True):
            flipped = part.unflatten(1, (columns, rows)).transpose(1, 2) if by_columns else None
            maps[row, column] = part.unflatten(1, (rows, columns)) if flipped is None else flipped
        lines = [torch.stack([maps[row, column] for column in range(STEP)], 3).flatten(2, 3) for row in range(STEP)]
        return torch.stack(lines, 2).flatten(1, 2)[:, :height, :width].flatten(1, 2)
