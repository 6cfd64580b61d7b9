"""Defines skip sampling of maps: every second position of every second row, and the four samples put together again.

EfficientVMamba scans each sample by itself, a quarter of the positions. A map with an odd side is padded with zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Distance of sampled positions along each side.
STEP = 2
#: (row, column, by columns) of the four samples: those of odd rows go column by column.
ORDER = ((0, 0, False), (1, 0, True), (0, 1, False), (1, 1, True))


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
    """Undoes the samples of `ORDER`, as sequences. Four [B, L, C] -> [B, H W, C], row by row."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, height: int, width: int) -> Tensor:
        rows, columns = -(-height // STEP), -(-width // STEP)
        even = torch.stack([part.unflatten(1, (rows, columns)) for part in (a, c)], 3)
        odd = torch.stack([part.unflatten(1, (columns, rows)).transpose(1, 2) for part in (b, d)], 3)
        lines = torch.stack([even.flatten(2, 3), odd.flatten(2, 3)], 2)
        return lines.flatten(1, 2)[:, :height, :width].flatten(1, 2)
