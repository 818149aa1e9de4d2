"""Builds of small runs with everything named, so that there is no contest, and nothing rewritten."""

from typing import Any

from export.build_engines import BuildConfig

NAMED = {"backend": "onnxruntime", "precision": "fp32", "encoder": "plain", "decoder": "plain", "split": "no"}
FLAGS = tuple(part for name, value in NAMED.items() for part in (f"--{name}", value))
WIDE: dict[str, Any] = {
    "latent_tolerance": 9.0,
    "level_tolerance": 255,
    "min_psnr": 12.0,
    "mean_tolerance": 20.0,
    "bias_tolerance": 5.0,
}
"""Random weights lose more to rounding than trained ones."""


def plain(**values: Any) -> BuildConfig:
    """A configuration with everything named, unless `values` name something else."""
    named: dict[str, Any] = {**NAMED, **values}
    return BuildConfig(**named)


def silent(_: str) -> None:
    """Says nothing."""
