"""Glue to the RL Zoo (``rl_zoo3``): its scripts, files and Optuna samplers, with our algorithms."""

from sb3_klip.zoo.algorithms import ALGORITHMS, ZooAlgorithm, default_config
from sb3_klip.zoo.manager import KLipExperimentManager
from sb3_klip.zoo.registration import register

__all__ = ["ALGORITHMS", "KLipExperimentManager", "ZooAlgorithm", "default_config", "register"]
