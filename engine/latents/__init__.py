"""Latent arithmetic: attribute directions and edits along them, walks between latents, samples, wishes. Pure numpy."""

from engine.arrays import Floats
from engine.latents.directions import Directions, Move
from engine.latents.sampling import FITTED, MIXTURE, Gaussian, Mixture, Prior, load_priors
from engine.latents.walks import linear, spherical
from engine.latents.wishes import Wishes, can_be_wished

__all__ = [
    "FITTED",
    "MIXTURE",
    "Directions",
    "Floats",
    "Gaussian",
    "Mixture",
    "Move",
    "Prior",
    "Wishes",
    "can_be_wished",
    "linear",
    "load_priors",
    "spherical",
]
