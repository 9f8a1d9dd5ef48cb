"""Draws of one's own: a block whose random numbers nobody outside it notices."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """Inside, Python, NumPy and torch draw from ``seed``; afterwards they go on as if never asked,
    so that what a notebook computes by hand does not change a training."""
    import torch  # slow to load

    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
