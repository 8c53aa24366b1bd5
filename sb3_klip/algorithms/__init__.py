"""The algorithms: SB3's own with the update of this package mixed in."""

from sb3_klip.algorithms.ppo import KLipPPO

__all__ = ["KLipPPO"]
