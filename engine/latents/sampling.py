"""New latents, drawn from a Gaussian or a mixture of some. Pure numpy, the same to the last bit on every machine.

Shapes: N latents of dimension D, K components of a mixture.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from safetensors import safe_open

from engine.arrays import Doubles, Floats
from engine.errors import BundleError, InvalidRequest
from engine.process.files import reading


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of latents: `mean + factor @ noise`, with noise from N(0, I).

    Raises:
        BundleError: When the parts disagree in shape or aren't finite float32.
    """

    mean: Floats  # float32 [D]
    factor: Floats  # float32 [D, D], a root of the covariance: covariance = factor @ factor.T

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("factor", self.factor)):
            shape = (self.mean.size,) * (1 if name == "mean" else 2)
            if values.dtype != np.float32 or values.shape != shape:
                raise BundleError(
                    f"{name} of a Gaussian must be float32 {list(shape)}, not {values.dtype} {list(values.shape)}"
                )
            if not np.isfinite(values).all():
                raise BundleError(f"{name} of a Gaussian has values that are not finite")

    @classmethod
    def standard(cls, latent_dim: int) -> "Gaussian":
        """N(0, I), which a VAE's latents are trained towards."""
        return cls(np.zeros(latent_dim, np.float32), np.eye(latent_dim, dtype=np.float32))

    @property
    def latent_dim(self) -> int:
        """Dimension D of the latent space."""
        return len(self.mean)

    def draw(self, count: int, seed: int, temperature: float = 1.0) -> Floats:
        """Draws latents, float32 [count, D]: the same seed gives the same ones, on every machine.

        The noise is NumPy's Philox stream in float64, row by row, so that the first k of many latents are the k of a
        smaller draw. (NumPy doesn't promise that its stream never changes; a test pins it.) The temperature is a factor
        on the noise: below 1 the latents lie closer to the mean, where images are more typical and less varied.

        Raises:
            InvalidRequest: When an argument is out of its range, or the result doesn't fit float32.
        """
        noise = _noise(count, seed, temperature, self.latent_dim)
        with np.errstate(over="ignore", invalid="ignore"):
            return _float32(self.mean + temperature * self.spread(noise), temperature)

    def spread(self, noise: Doubles) -> Doubles:
        """`factor @ row` for each row of the noise, [N, D].

        Not a matrix product: how BLAS rounds depends on the machine, and on how many rows there are. Here every sum
        goes from the factor's first column to its last, as NumPy adds along an axis that isn't the last one.
        """
        spread, products = np.empty_like(noise), np.empty_like(self._columns)
        for row, values in zip(spread, noise, strict=True):
            np.multiply(self._columns, values[:, None], out=products).sum(axis=0, out=row)
        return spread

    @cached_property
    def _columns(self) -> Doubles:
        """The factor's columns, one after the other in memory."""
        return np.ascontiguousarray(self.factor.T, np.float64)


@dataclass(frozen=True)
class Mixture:
    """Gaussians of which each latent is drawn from one, chosen by weight.

    Raises:
        BundleError: When the parts disagree in shape, or weights aren't finite numbers above 0.
    """

    weights: Doubles  # float64 [K], above 0
    components: tuple[Gaussian, ...]

    def __post_init__(self) -> None:
        if self.weights.dtype != np.float64 or self.weights.shape != (len(self.components),) or not self.components:
            raise BundleError(
                f"a mixture of {len(self.components)} Gaussians needs as many weights, float64, not "
                f"{self.weights.dtype} {list(self.weights.shape)}"
            )
        if not (np.isfinite(self.weights).all() and (self.weights > 0).all()):
            raise BundleError("weights of a mixture must be finite numbers above 0")

    @property
    def latent_dim(self) -> int:
        """Dimension D of the latent space."""
        return self.components[0].latent_dim

    @cached_property
    def mean(self) -> Doubles:
        """The mean of the whole mixture, [D]."""
        means = np.stack([one.mean for one in self.components]).astype(np.float64)
        mean: Doubles = np.cumsum(means * self.weights[:, None], axis=0)[-1] / self._bounds[-1]
        return mean

    @cached_property
    def _bounds(self) -> Doubles:
        """The weights up to each component, [K]. Unlike those of a sum, its roundings are the same everywhere."""
        return np.cumsum(self.weights)

    def draw(self, count: int, seed: int, temperature: float = 1.0) -> Floats:
        """Draws latents, float32 [count, D], as `Gaussian.draw` does and from the same noise.

        Which component a latent is of comes from a stream of its own, one number each. The temperature is a factor
        on the distance from the mean of the whole mixture.

        Raises:
            InvalidRequest: As `Gaussian.draw`.
        """
        noise = _noise(count, seed, temperature, self.latent_dim)
        lots = np.random.Generator(np.random.Philox(seed).jumped()).random(count) * self._bounds[-1]
        chosen = np.searchsorted(self._bounds[:-1], lots, side="right")
        latents = np.empty_like(noise)
        for number in np.unique(chosen):
            rows, component = chosen == number, self.components[number]
            latents[rows] = component.mean + component.spread(noise[rows])
        with np.errstate(over="ignore", invalid="ignore"):
            return _float32(self.mean + temperature * (latents - self.mean), temperature)


Prior: TypeAlias = Gaussian | Mixture

FITTED, MIXTURE = "fitted", "mixture"
"""Names of the priors that a file may hold."""


def load_priors(path: str | Path) -> dict[str, Prior]:
    """Reads the priors of a run or bundle: by name, the one to draw from unless told otherwise first.

    The file is safetensors: `mean` [D] and `factor` [D, D] of a Gaussian, and where there is a mixture, too, its
    `weights` [K], `means` [K, D] and `factors` [K, D, D].

    Raises:
        BundleError: When the file is missing, truncated, or holds no Gaussian.
    """
    with reading(path, "a prior", BundleError):
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fitted = Gaussian(tensors["mean"], tensors["factor"])
        if "weights" not in tensors:
            return {FITTED: fitted}
        components = tuple(map(Gaussian, tensors["means"], tensors["factors"]))
        mixture = Mixture(tensors["weights"], components)
        if mixture.latent_dim != fitted.latent_dim:
            raise BundleError(f"its mixture has {mixture.latent_dim} dimensions, its Gaussian {fitted.latent_dim}")
    return {MIXTURE: mixture, FITTED: fitted}


def _noise(count: int, seed: int, temperature: float, latent_dim: int) -> Doubles:
    """Noise of N(0, I), [count, D], once the arguments are known to be in their ranges."""
    if count < 1:
        raise InvalidRequest(f"count must be at least 1, not {count}")
    if seed < 0:
        raise InvalidRequest(f"seed must be at least 0, not {seed}")
    if not 0 <= temperature < np.inf:
        raise InvalidRequest(f"temperature must be at least 0 and finite, not {temperature:g}")
    return np.random.Generator(np.random.Philox(seed)).standard_normal((count, latent_dim))


def _float32(latents: Doubles, temperature: float) -> Floats:
    rounded = latents.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise InvalidRequest(
            f"temperature {temperature:g} moves the latents out of float32's range; use a temperature of about 1"
        )
    return rounded
