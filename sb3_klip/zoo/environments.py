"""Environments with invalid actions, sb3-contrib's own, under ids: Gymnasium registers none that has masks."""

from typing import Any

import gymnasium as gym

# Eighty actions of which sixty are invalid at a time, or as many as the spaces allow; an episode has 100 steps with a
# reward of 1 each for the right action.
MASKED_ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "InvalidActionEnvDiscrete-v0": dict(dim=80, n_invalid_actions=60),
    "InvalidActionEnvMultiDiscrete-v0": dict(dims=[10, 10], n_invalid_actions=10),
    "InvalidActionEnvMultiBinary-v0": dict(dims=10, n_invalid_actions=5),
}


def register_environments() -> None:
    """
    Register :data:`MASKED_ENVIRONMENTS`. Doing it again does nothing.
    """
    for env_id, kwargs in MASKED_ENVIRONMENTS.items():
        if env_id not in gym.registry:
            entry_point = f"sb3_contrib.common.envs:{env_id.removesuffix('-v0')}"
            # The environments are older than Gymnasium's checker, which finds their data types wanting
            gym.register(env_id, entry_point=entry_point, kwargs=kwargs, disable_env_checker=True)
