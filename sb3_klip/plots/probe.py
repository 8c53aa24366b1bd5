"""What the pictures show, as numbers: a penalty called over ratios and advantages, as the update calls it."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch as th

from sb3_klip.penalties import GatePenalty, Penalty, PenaltyInputs
from sb3_klip.penalties.checks import check_penalty

#: Ratios are drawn up to here, and further for a shape that still has an edge there.
USUAL_RATIO_LIMIT = 2.0
#: No picture goes further than this.
LARGEST_RATIO_LIMIT = 10.0
#: Steps after which an episode is as late as it gets.
LATEST_POSITION = 1e6


@dataclass(frozen=True)
class Probe:
    """
    A penalty at one moment of a training and of an episode.

    :param penalty: the penalty
    :param clip_range: half-width ε of the algorithm's band, in ratio units
    :param progress_remaining: training progress, from 1 at the beginning to 0 at the end
    :param position: steps since the episode began
    :raises ValueError: if a number is out of its range, or the penalty returns NaN or a wrong shape
    """

    penalty: Penalty
    clip_range: float = 0.2
    progress_remaining: float = 1.0
    position: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.clip_range < 1:
            raise ValueError(f"clip_range must be > 0 and < 1, got {self.clip_range:g}")
        if not 0 <= self.progress_remaining <= 1:
            raise ValueError(f"progress_remaining must be >= 0 and <= 1, got {self.progress_remaining:g}")
        if not 0 <= self.position < math.inf:
            raise ValueError(f"position must be a number of steps >= 0, got {self.position:g}")
        check_penalty(self.penalty)

    def at(self, position: float) -> "Probe":
        """
        :param position: steps since the episode began
        :return: the same at another position
        """
        return replace(self, position=position)

    def beta(self, ratio: np.ndarray, advantages: np.ndarray | float) -> np.ndarray:
        """
        :param ratio: importance ratios, any shape
        :param advantages: advantages, of a shape that broadcasts with that of the ratios
        :return: :meth:`Penalty.beta`, of the shape that both broadcast to
        """
        return self._call("beta", ratio, advantages)

    def gate(self, ratio: np.ndarray, advantages: np.ndarray | float) -> np.ndarray:
        """
        :param ratio: as in :meth:`beta`
        :param advantages: as in :meth:`beta`
        :return: :meth:`Penalty.gate`, of the shape that both broadcast to
        """
        return self._call("gate", ratio, advantages)

    def surrogate(self, ratio: np.ndarray, advantages: np.ndarray | float) -> np.ndarray:
        """
        :param ratio: as in :meth:`beta`
        :param advantages: as in :meth:`beta`
        :return: :meth:`Penalty.surrogate`, of the shape that both broadcast to
        """
        return self._call("surrogate", ratio, advantages)

    def has_gate(self) -> bool:
        """
        :return: whether the penalty acts through the ratio, anywhere
        """
        ratio, advantages = np.meshgrid(ratios(LARGEST_RATIO_LIMIT, 2000), [-1.0, 1.0])
        return bool(self.gate(ratio, advantages).any())

    def band(self) -> tuple[float, float]:
        """
        :return: lower and upper end of the band: the penalty's own if it is a gate, otherwise the algorithm's
        """
        if isinstance(self.penalty, GatePenalty):
            return self.penalty.band(self._inputs(th.ones(1), th.ones(1)))
        return 1 - self.clip_range, 1 + self.clip_range

    def _inputs(self, ratio: th.Tensor, advantages: th.Tensor) -> PenaltyInputs:
        positions = th.full_like(ratio, self.position)
        return PenaltyInputs(ratio, advantages, self.clip_range, positions, self.progress_remaining)

    def _call(self, method: str, ratio: np.ndarray, advantages: np.ndarray | float) -> np.ndarray:
        # In float32 and as flat tensors, as in training: a user's shape may count on both
        ratio, advantages = np.broadcast_arrays(np.asarray(ratio, np.float32), np.asarray(advantages, np.float32))
        inputs = self._inputs(th.tensor(ratio).flatten(), th.tensor(advantages).flatten())
        with th.no_grad():
            output = getattr(self.penalty, method)(inputs)
        return output.double().numpy().reshape(ratio.shape)


def ratios(limit: float, points: int) -> np.ndarray:
    """
    :param limit: the largest ratio
    :param points: how many
    :return: equally spaced ratios above 0, shape ``(points,)``, in float32
    """
    return np.linspace(0, limit, points + 1, dtype=np.float32)[1:]


def ratio_limit(probe: Probe) -> float:
    """
    How far to the right a picture must go: a shape may have an edge that the usual range does not show.

    :param probe: the penalty
    :return: the largest ratio of the axis
    """
    ratio = ratios(LARGEST_RATIO_LIMIT, 2000)
    last = 0.0
    for advantage in (1.0, -1.0):
        # A step or a bend of the gate stands out of its second difference, however steep it is otherwise
        bend = np.abs(np.diff(probe.gate(ratio, advantage), n=2))
        edges = ratio[1:-1][(bend > 5e-4) & (ratio[1:-1] > 1)]
        last = max(last, edges.max(initial=0.0))
    return min(max(USUAL_RATIO_LIMIT, math.ceil(2 * (last + 0.4)) / 2), LARGEST_RATIO_LIMIT)


def early_and_late(probe: Probe) -> list[Probe]:
    """
    The positions to draw of a penalty that depends on the position in the episode.

    :param probe: the penalty
    :return: the penalty at position 0, and at the smallest round position from which on β differs by less than
        1 % from its value in a very long episode; the first alone if β is the same all along
    """
    early = probe.at(0.0)
    if not probe.penalty.uses_positions:
        return [early]
    ratio, advantages = np.meshgrid(ratios(USUAL_RATIO_LIMIT, 80), [-1.0, 1.0])
    end = probe.at(LATEST_POSITION).beta(ratio, advantages)
    change = np.abs(end - early.beta(ratio, advantages)).max()
    if not change:
        return [early]
    late = probe.at(LATEST_POSITION)
    for position in reversed([digit * 10.0**power for power in range(6) for digit in (1, 2, 5)]):
        earlier = probe.at(position)
        if np.abs(earlier.beta(ratio, advantages) - end).max() > 0.01 * change:
            break
        late = earlier
    return [early, late]
