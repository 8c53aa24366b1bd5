"""
Frames per second of SB3's PPO and of KLipPPO, side by side: python benchmarks/speed.py --envs CartPole-v1

The variants take turns, so that a busy machine is busy for all of them, and medians are compared: trust the ratios.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import stable_baselines3
import torch as th
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_klip import KLipPPO, __version__

Make = Callable[..., BaseAlgorithm]

VARIANTS: dict[str, Make] = {
    "SB3 PPO": PPO,
    "KLipPPO, hard": KLipPPO,
    "KLipPPO, sigmoid": partial(KLipPPO, penalty="sigmoid"),
}


def measure(make: Make, env_id: str, n_timesteps: int) -> tuple[float, float, float]:
    """
    :param make: makes the model
    :param env_id: id of the environment
    :param n_timesteps: environment steps to train
    :return: frames per second of the whole, of the rollouts alone, and of the updates alone
    """
    model = make("MlpPolicy", env_id, seed=0, device="cpu")
    collect_rollouts, in_rollouts = model.collect_rollouts, 0.0

    def timed(*args: object, **kwargs: object) -> bool:
        nonlocal in_rollouts
        start = time.perf_counter()
        continue_training = collect_rollouts(*args, **kwargs)
        in_rollouts += time.perf_counter() - start
        return continue_training

    model.collect_rollouts = timed
    start = time.perf_counter()
    model.learn(n_timesteps)
    total = time.perf_counter() - start
    model.env.close()
    return tuple(model.num_timesteps / seconds for seconds in (total, in_rollouts, total - in_rollouts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", nargs="+", default=["CartPole-v1", "HalfCheetah-v4"])
    parser.add_argument("-n", "--n-timesteps", type=int, default=6144, help="environment steps of each run")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each variant")
    options = parser.parse_args()
    th.set_num_threads(1)

    console = Console()
    versions = f"sb3-klip {__version__}, SB3 {stable_baselines3.__version__}, PyTorch {th.__version__}"
    console.print(f"{versions}, Python {platform.python_version()}, {platform.machine()}, one thread")
    for env_id in options.envs:
        runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
        for _ in track(range(options.repeats), description=env_id, transient=True):
            for name, make in VARIANTS.items():
                runs[name].append(measure(make, env_id, options.n_timesteps))
        medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
        table = Table("", "frames per second", "rollouts alone", "updates alone", title=f"{env_id}, PPO's default arguments")
        for name, speeds in medians.items():
            reference = medians["SB3 PPO"]
            cells = [f"{speed:.0f} ({speed / slow:.2f}x)" for speed, slow in zip(speeds, reference, strict=True)]
            table.add_row(name, *cells)
        console.print(table)


if __name__ == "__main__":
    main()
