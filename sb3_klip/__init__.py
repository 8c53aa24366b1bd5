"""KLip-PPO for Stable-Baselines3: PPO whose clipping is a KL penalty with a coefficient of your choice."""

from pathlib import Path

from sb3_klip.algorithms import KLipPPO, MaskableKLipPPO, RecurrentKLipPPO

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

__all__ = ["KLipPPO", "MaskableKLipPPO", "RecurrentKLipPPO", "__version__"]
