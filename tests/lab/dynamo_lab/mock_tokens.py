"""The tokens of the worker's mock engine, computed independently of it (src/engine/mock_engine.h)."""

from __future__ import annotations

import itertools
from typing import Iterator, Sequence

_MASK = (1 << 64) - 1
_SPARED = 3  # ids 0 ... 2 never come out


def _mix(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def hashed(prompt: Sequence[int], vocab_size: int) -> Iterator[int]:
    """--mock-tokens hash."""
    seed = len(prompt)
    for token in prompt:
        seed = _mix(seed ^ token)
    for index in itertools.count():
        yield _SPARED + _mix(seed ^ index) % (vocab_size - _SPARED)
