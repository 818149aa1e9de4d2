"""Latent arithmetic: directions of attributes, edits along them, conditions, walks, samples. Pure numpy."""

from engine.latents.conditions import Conditions, can_condition
from engine.latents.directions import Directions, Move
from engine.latents.sampling import FITTED, MIXTURE, Gaussian, Mixture, Prior, load_priors
from engine.latents.walks import linear, spherical

__all__ = [
    "FITTED",
    "MIXTURE",
    "Conditions",
    "Directions",
    "Gaussian",
    "Mixture",
    "Move",
    "Prior",
    "can_condition",
    "linear",
    "load_priors",
    "spherical",
]
