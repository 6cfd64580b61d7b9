"""Cuts maps into square windows and puts them together again; a map that windows do not fill is padded with zeros."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Windows:
    """The windows of `window` x `window` positions that cover a square map of `side`.

    Attributes:
        across: windows in a row of windows.
        count: windows in all.
    """

    def __init__(self, side: int, window: int) -> None:
        self.side, self.window = side, window
        self.across = -(-side // window)
        self.count = self.across**2


class EnterWindows(nn.Module):
    """Turns a map [B, side, side, C] into tokens [B, count window^2, C]: window by window, each row by row."""

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, x: Tensor) -> Tensor:
        windows = self.windows
        missing = windows.across * windows.window - windows.side
        x = F.pad(x, (0, 0, 0, missing, 0, missing))
        x = x.unflatten(2, (windows.across, windows.window)).unflatten(1, (windows.across, windows.window))
        return x.transpose(2, 3).flatten(1, 4)


class LeaveWindows(nn.Module):
    """Turns tokens in windows [B, count window^2, C] into the map [B, side, side, C] that they were cut from."""

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, x: Tensor) -> Tensor:
        windows = self.windows
        x = x.unflatten(1, (windows.across, windows.across, windows.window, windows.window)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)[:, : windows.side, : windows.side]


class SplitWindows(nn.Module):
    """Makes a sequence of each window: [B, count L, C] -> [B count, L, C]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.count, -1)).flatten(0, 1)


class JoinWindows(nn.Module):
    """Undoes `SplitWindows`: [B count, L, C] -> [B, count L, C]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.count)).flatten(1, 2)
