"""The β_t family: every published ratio surrogate, and the scalar KL penalties, as one small object each."""

from sb3_klip.penalties import clipping, combinators, scalar, smooth, soft  # noqa: F401  (they register their shapes)
from sb3_klip.penalties.base import GatePenalty, Penalty, PenaltyInputs
from sb3_klip.penalties.parameters import Choice, Number
from sb3_klip.penalties.registry import available_penalties, make_penalty, register_penalty

__all__ = [
    "Choice",
    "GatePenalty",
    "Number",
    "Penalty",
    "PenaltyInputs",
    "available_penalties",
    "make_penalty",
    "register_penalty",
]
