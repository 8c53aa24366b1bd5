"""KLip-PPO for Stable-Baselines3: PPO whose clipping is a KL penalty with a coefficient of your choice."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_klip.algorithms import KLipPPO, MaskableKLipPPO, RecurrentKLipPPO

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

__all__ = ["KLipPPO", "MaskableKLipPPO", "RecurrentKLipPPO", "__version__"]


def __getattr__(name: str) -> Any:
    # PyTorch takes a second or two to import, which a help text on the command line should not cost
    if name in __all__:
        from sb3_klip import algorithms

        return getattr(algorithms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
