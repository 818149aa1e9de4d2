"""Latent arithmetic: attribute directions and edits along them, walks between latents, samples. Pure numpy."""

from engine.latents.directions import Directions, Floats, Move, shift, steps_of
from engine.latents.sampling import Gaussian, linear, spherical

__all__ = ["Directions", "Floats", "Gaussian", "Move", "linear", "shift", "spherical", "steps_of"]
