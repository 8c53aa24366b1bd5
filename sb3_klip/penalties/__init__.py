"""The β_t family: every published ratio surrogate, and the scalar KL penalties, as one small object each."""

from sb3_klip.penalties.base import GatePenalty, Penalty, PenaltyInputs
from sb3_klip.penalties.gates import Hard, Unconstrained
from sb3_klip.penalties.parameters import Choice, Number
from sb3_klip.penalties.registry import available_penalties, make_penalty, register_penalty

__all__ = [
    "Choice",
    "GatePenalty",
    "Hard",
    "Number",
    "Penalty",
    "PenaltyInputs",
    "Unconstrained",
    "available_penalties",
    "make_penalty",
    "register_penalty",
]
