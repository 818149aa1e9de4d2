"""The networks that are measured with: each found, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from trainer.errors import ConfigError
from trainer.evaluation import identity, networks
from trainer.evaluation.identity import Recogniser
from trainer.evaluation.networks import MetricNetwork, NetworkT
from trainer.evaluation.options import Measure, Options
from trainer.evaluation.skipped import SkippedError
from trainer.hardware.device import Placement


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that are measured with."""

    vgg: MetricNetwork[networks.Features]
    lpips: MetricNetwork[nn.Module]
    inception: MetricNetwork[FrechetInceptionDistance]
    recogniser: MetricNetwork[Recogniser]

    @classmethod
    def of(cls, options: Options, own_vgg: Path | None, place: Placement) -> MetricNetworks:
        """Finds them.

        Args:
            options: names files of weights.
            own_vgg: the file of VGG19 weights that the run was trained with, or None.
            place: where to compute.

        Raises:
            ConfigError: a file of weights is missing or does not fit.
        """

        def find(
            name: Measure, load: Callable[[Path | None], tuple[NetworkT, str]], weights: Path | None
        ) -> MetricNetwork[NetworkT]:
            if name in options.skip:
                return MetricNetwork(None, f"left out by --skip {name}")
            return MetricNetwork.of(load, weights)

        def vgg19(given: Path | None) -> tuple[networks.Features, str]:
            if given is not None or own_vgg is None or not own_vgg.is_file():
                return networks.vgg19(given, place)
            try:
                return networks.vgg19(own_vgg, place)
            except ConfigError as error:
                raise SkippedError(f"the file that the run was trained with will not do ({error})") from error

        return cls(
            find("vgg", vgg19, options.vgg_weights),
            find("lpips", networks.lpips, options.lpips_weights),
            find("fid", networks.inception, options.inception_weights),
            MetricNetwork.of(identity.recogniser, options.identity_weights),
        )
