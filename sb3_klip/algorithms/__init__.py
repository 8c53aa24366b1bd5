"""The algorithms: SB3's and sb3-contrib's own, with the update of this package mixed in."""

from sb3_klip.algorithms.maskable import MaskableKLipPPO
from sb3_klip.algorithms.ppo import KLipPPO
from sb3_klip.algorithms.recurrent import RecurrentKLipPPO

__all__ = ["KLipPPO", "MaskableKLipPPO", "RecurrentKLipPPO"]
