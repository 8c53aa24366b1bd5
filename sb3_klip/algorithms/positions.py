"""Where each transition of a rollout stands in its episode, found again in shuffled minibatches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer


def positions_in_episode(episode_starts: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Count the steps since each episode began.

    :param episode_starts: whether a step is the first of its episode, shape ``(n_steps, n_envs)``
    :param first: positions of the first steps if no episode starts there, that is, where the rollout before
        broke off, shape ``(n_envs,)``
    :return: position of each step, 0 for the first of an episode, shape ``(n_steps, n_envs)``; and the position
        that the step after the last one will have if the episode goes on, shape ``(n_envs,)``
    """
    positions = np.empty(episode_starts.shape, dtype=np.float32)
    following = first
    for step, starts in enumerate(episode_starts):
        positions[step] = np.where(starts, 0.0, following)
        following = positions[step] + 1
    return positions, following


def minibatches_with_indices(rollout_buffer: RolloutBuffer, batch_size: int | None) -> Iterator[tuple[Any, np.ndarray]]:
    """
    One pass over a rollout that also tells which transitions each minibatch holds.

    SB3's buffers, and those derived from them, shuffle in ``get`` and hand each minibatch's indices to
    ``_get_samples``; they are overheard there.

    :param rollout_buffer: the buffer
    :param batch_size: size of a minibatch
    :return: minibatches as ``rollout_buffer.get`` gives them, each with its indices into the flattened rollout
    :raises ValueError: if the buffer does not work that way
    """
    get_samples, heard = rollout_buffer._get_samples, []
    shadowed = vars(rollout_buffer).get("_get_samples")

    def overhear(batch_inds: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        heard.append(batch_inds)
        return get_samples(batch_inds, *args, **kwargs)

    rollout_buffer._get_samples = overhear  # type: ignore[method-assign]
    try:
        for rollout_data in rollout_buffer.get(batch_size):
            if not heard:
                raise ValueError(
                    f"{type(rollout_buffer).__name__}.get does not call _get_samples, so the positions of its "
                    "samples are not known; use a buffer derived from SB3's, or a penalty without positions"
                )
            yield rollout_data, heard.pop()
    finally:
        del rollout_buffer._get_samples
        if shadowed is not None:
            rollout_buffer._get_samples = shadowed  # type: ignore[method-assign]
