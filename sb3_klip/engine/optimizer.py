"""The optimizer's step for all parameters together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


@contextmanager
def stepping_together(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """
    While in this context, an optimizer that was left to choose updates all parameters with one call per operation
    (PyTorch's ``foreach``), which gives the same bits with less Python. PyTorch chooses so by itself only on a GPU.

    :param optimizer: the optimizer; one for which the user chose, or that has no such option, stays as it is
    """
    groups = [group for group in optimizer.param_groups if group.get("foreach", False) is None and group.get("fused") is None]
    for group in groups:
        group["foreach"] = True
    try:
        yield
    finally:
        for group in groups:
            group["foreach"] = None
