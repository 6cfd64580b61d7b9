"""Makes orthogonal matrices that spread one channel over all: Hadamard matrices, or close to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visq.quant.rotated import Rotation

#: Up to about this order the dense factor's products are cheaper than the additions they save.
SMALL = 12


def spreading_rotation(n: int, seed: int) -> Rotation:
    """Returns a randomized Hadamard matrix of order n over sqrt(n); if none is known, one times a small cosine basis.

    The Hadamard matrix is the Kronecker product of Sylvester's of order 2^j with Paley's of order n / 2^j = q + 1, q a
    prime that is 3 mod 4 (12, 20, 24, ...). Otherwise Sylvester's of the largest order meets the orthonormal DCT-II of
    the odd rest. A random sign for each channel keeps the first column from collecting the channels' mean.
    """
    powers = range((n & -n).bit_length() - 1, -1, -1)
    power = next((j for j in powers if is_paley(n >> j)), None)
    small = cosine_basis(n >> powers[0]) if power is None else paley(n >> power)
    power = powers[0] if power is None else power
    while power and len(small) < SMALL:
        small, power = torch.kron(torch.tensor([[1, 1], [1, -1]]), small) / math.sqrt(2), power - 1
    signs = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Rotation((small / math.sqrt(2**power)).float(), signs.float())


def is_paley(n: int) -> bool:
    q = n - 1
    return n == 1 or (q % 4 == 3 and all(q % p for p in range(2, math.isqrt(q) + 1)))


def paley(n: int) -> Tensor:
    """Returns Paley's first construction as an orthogonal matrix; n is 1, or n - 1 a prime that is 3 mod 4."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.double)
    q = n - 1
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], dtype=torch.double)
    matrix = torch.zeros(n, n, dtype=torch.double)
    matrix[0, 1:], matrix[1:, 0] = 1, -1
    matrix[1:, 1:] = character[(torch.arange(q)[:, None] - torch.arange(q)) % q]
    return (matrix + torch.eye(n, dtype=torch.double)) / math.sqrt(n)


def cosine_basis(n: int) -> Tensor:
    """Returns the orthonormal DCT-II [n, n]."""
    index = torch.arange(n, dtype=torch.double)
    basis = torch.cos(math.pi / n * (index[:, None] + 0.5) * index) * math.sqrt(2 / n)
    basis[:, 0] /= math.sqrt(2)
    return basis
