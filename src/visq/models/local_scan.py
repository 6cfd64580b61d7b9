"""Orders the tokens of a map for the scans of LocalVim and LocalVMamba (arXiv 2403.09338), and undoes it.

A direction is `h` (row by row), `v` (column by column) or `w` and a number (window by window, each row by row), and
`_flip` behind it reverses the order. A map that windows do not fill is padded with zeros below and on the right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.errors import VisqError

#: Directions of one layer, with a space between them.
LINE = r"(h|v|w[1-9]\d?)(_flip)?( (h|v|w[1-9]\d?)(_flip)?)*"
LINES = "a line for each layer such as 'h v_flip w2 w7_flip' (fewer lines repeat)"


def directions_of(lines: Sequence[str], layer: int) -> tuple[str, ...]:
    """Returns the directions of a layer; the lines repeat where there are fewer of them than layers."""
    return tuple(lines[layer % len(lines)].split(" "))


def check_lines(lines: Sequence[str]) -> None:
    """Raises VisqError unless there are lines, and each lists directions."""
    for line in lines or ("",):
        if not isinstance(line, str) or not re.fullmatch(LINE, line):
            raise VisqError(f"directions must be {LINES}, not {line!r}")


class EnterWindowOrder(nn.Module):
    """Reorders the tokens of a map to windows. [B, height width, C] -> [B, windows window^2, C]."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        window, rows, columns = self.window, self.count(height), self.count(width)
        x = x.unflatten(1, (height, width))
        x = F.pad(x, (0, 0, 0, columns * window - width, 0, rows * window - height))
        return x.unflatten(2, (columns, window)).unflatten(1, (rows, window)).transpose(2, 3).flatten(1, 4)

    def count(self, side: int) -> int:
        """Returns the windows that cover a side."""
        return -(-side // self.window)


class LeaveWindowOrder(EnterWindowOrder):
    """Undoes `EnterWindowOrder`. [B, windows window^2, C] -> [B, height width, C]."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        window, rows, columns = self.window, self.count(height), self.count(width)
        x = x.unflatten(1, (rows, columns, window, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, :height, :width].flatten(1, 2)


class SwapSides(nn.Module):
    """Reorders tokens from row by row to column by column. [B, height width, C] -> [B, width height, C]."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return x.unflatten(1, (height, width)).transpose(1, 2).flatten(1, 2)


class Order(nn.Module):
    """Puts the tokens of a map [B, height width, C] into the order of one direction, and back.

    Arguments:
        direction: as above.
        class_token: whether a class token stands in the middle of the map's tokens. It does not move with the map: it
            stands in the middle in scan order too, as if the map were not padded.
    """

    def __init__(self, direction: str, class_token: bool = False) -> None:
        super().__init__()
        self.base, _, flip = direction.partition("_")
        self.flip, self.class_token = bool(flip), class_token
        self.window = int(self.base[1:]) if self.base.startswith("w") else 0
        if self.window:
            self.enter: nn.Module = EnterWindowOrder(self.window)
            self.leave: nn.Module = LeaveWindowOrder(self.window)
        elif self.base == "v":
            self.enter, self.leave = SwapSides(), SwapSides()

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        if self.class_token and self.moves(height, width):
            middle, at = height * width // 2, self.place(height, width)
            token = x[:, middle : middle + 1]
            x = self.ordered(torch.cat([x[:, :middle], x[:, middle + 1 :]], dim=1), height, width)
            x = torch.cat([x[:, :at], token, x[:, at:]], dim=1)
        elif not self.class_token:
            x = self.ordered(x, height, width)
        return x.flip(1) if self.flip else x

    def back(self, y: Tensor, height: int, width: int) -> Tensor:
        """Undoes `forward`; padding is dropped."""
        y = y.flip(1) if self.flip else y
        if not self.class_token:
            return self.unordered(y, height, width)
        if not self.moves(height, width):
            return y
        middle, at = height * width // 2, self.place(height, width)
        token = y[:, at : at + 1]
        y = self.unordered(torch.cat([y[:, :at], y[:, at + 1 :]], dim=1), height, width)
        return torch.cat([y[:, :middle], token, y[:, middle:]], dim=1)

    def ordered(self, x: Tensor, height: int, width: int) -> Tensor:
        return x if self.base == "h" else self.enter(x, height, width)

    def unordered(self, y: Tensor, height: int, width: int) -> Tensor:
        if self.base == "h":
            return y
        return self.leave(y, width, height) if self.base == "v" else self.leave(y, height, width)

    def moves(self, height: int, width: int) -> bool:
        """Returns whether forward does more than flip the tokens, class token included."""
        return self.base != "h" or (self.flip and height * width % 2 == 1)

    def place(self, height: int, width: int) -> int:
        """Returns where the class token stands in the order before the flip, so that it is in the middle after it."""
        window, middle = self.window, height * width // 2
        padded = -(-height // window) * -(-width // window) * window**2 if window else height * width
        return padded - middle if self.flip else middle
