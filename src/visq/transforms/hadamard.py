"""Orthogonal matrices that spread one channel over all: Hadamard matrices, and what to take where none is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spreading_matrix(n: int, seed: int) -> Tensor:
    """An orthogonal [n, n]: a randomized Hadamard matrix / sqrt(n), or one times a small cosine basis.

    Kronecker products: Sylvester's matrix of order 2^j with Paley's of order n / 2^j = q + 1, q a prime that is 3 mod 4
    (12, 20, 24, ...); where there is none, Sylvester's of the largest possible order with the orthonormal DCT-II of the
    odd rest. A random sign per row keeps the first column from collecting the channels' mean.
    """
    powers = range((n & -n).bit_length() - 1, -1, -1)
    power = next((j for j in powers if is_paley(n >> j)), None)
    small = cosine_basis(n >> powers[0]) if power is None else paley(n >> power)
    power = powers[0] if power is None else power
    matrix = torch.kron(sylvester(power), small) / math.sqrt(2**power)
    signs = torch.randint(0, 2, (n, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (matrix * signs).float()


def sylvester(k: int) -> Tensor:
    """The Hadamard matrix [2^k, 2^k] of +-1."""
    matrix = torch.ones(1, 1, dtype=torch.double)
    for _ in range(k):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.double), matrix)
    return matrix


def is_paley(n: int) -> bool:
    q = n - 1
    return n == 1 or (q % 4 == 3 and all(q % p for p in range(2, math.isqrt(q) + 1)))


def paley(n: int) -> Tensor:
    """Paley's first construction, normalized to an orthogonal matrix: n = 1, or n - 1 a prime that is 3 mod 4."""
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
    """The orthonormal DCT-II [n, n]."""
    index = torch.arange(n, dtype=torch.double)
    basis = torch.cos(math.pi / n * (index[:, None] + 0.5) * index) * math.sqrt(2 / n)
    basis[:, 0] /= math.sqrt(2)
    return basis
