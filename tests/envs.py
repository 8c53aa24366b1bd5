"""Small environments, as fast as an environment can be, that depend on nothing but their seed."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

UNIT_BOX = spaces.Box(-1.0, 1.0, (3,), dtype=np.float32)
#: The smallest image that SB3's CNN takes.
SMALL_IMAGE = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)


class NoisyRewards(gym.Env):
    """
    Random observations; the reward depends on observation and action, with noise. Episodes end in turn by
    termination and by truncation, after which SB3 takes the value of the last observation.

    :param action_space: any space that PPO takes
    :param observation_space: box of floats or of bytes
    """

    def __init__(self, action_space, observation_space=UNIT_BOX):
        self.action_space = action_space
        self.observation_space = observation_space
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.episode = 0
        self.episode += 1
        self.step_in_episode = 0
        return self._observe(), {}

    def step(self, action):
        self.step_in_episode += 1
        reward = float(np.mean(action) * np.sign(self.brightness - 0.5) + 0.1 * self.np_random.normal())
        over = self.step_in_episode >= 15 + self.episode % 3
        terminated = over and self.episode % 2 == 0
        return self._observe(), reward, terminated, over and not terminated, {}

    def _observe(self):
        self.brightness = self.np_random.random()
        space = self.observation_space
        noise = 0.2 * self.np_random.random(space.shape)
        return (space.low + (space.high - space.low) * (0.8 * self.brightness + noise)).astype(space.dtype)


class Clock(gym.Env):
    """
    An environment without chance: the observation is the time, and an action is rewarded at its own time.

    :param episode_length: number of steps of every episode
    """

    action_space = spaces.Discrete(4)
    observation_space = spaces.Box(0.0, 1.0, (1,), dtype=np.float32)

    def __init__(self, episode_length=16):
        self.episode_length = episode_length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        reward = float(action == self.time % 4)
        self.time += 1
        return self._observe(), reward, self.time >= self.episode_length, False, {}

    def _observe(self):
        return np.array([self.time / self.episode_length], dtype=np.float32)


def several(n_envs, action_space, observation_space=UNIT_BOX):
    """A vectorized :class:`NoisyRewards`."""
    return DummyVecEnv([lambda: NoisyRewards(action_space, observation_space)] * n_envs)
