"""What a training run is about to do, checked before it does anything that takes long or writes."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.artifacts.directions import warn_of_few
from trainer.config import TrainConfig
from trainer.data import SPLITS, FaceData, Index, Pack, contact_sheet, read_index
from trainer.errors import ConfigError, RunError
from trainer.hardware.device import Placement
from trainer.loss.vgg import check_weights
from trainer.optim import Schedule
from trainer.presets import PRESETS
from trainer.run_folder import CHECKPOINT, initial_weights, load_config, require_apart, require_free, require_same

logger = logging.getLogger(__name__)

MIN_STEPS_AT_PEAK = 100
"""Steps at the peak learning rate below which reconstructions stay blurs."""


@dataclass(frozen=True)
class Plan:
    """A run that can start."""

    config: TrainConfig  # what to compute
    pack: Pack  # the images, which may still have to be packed
    out: Path  # the run folder, which can be written
    place: Placement  # device and arithmetic
    perceptual_weights: str  # where VGG19's weights come from

    @classmethod
    def of(cls, config: TrainConfig, data: Path, out: Path, resume: bool) -> "Plan":
        """Checks everything that can be checked in seconds: the run folder, the device, the data, VGG's weights.

        Raises:
            TrainerError: something would fail later; names it and the mend.
        """
        _require_out(out, resume)
        begins = not (out / CHECKPOINT).exists()
        if not begins:
            before, _ = load_config(out)
            require_same(out, config, before.to_json())
        place = Placement.of(config.device, config.precision)
        index = read_index(
            data, labels=config.labels, split_by=config.split_by, skip_damaged=config.skip_damaged
        ).limited(config.limit_train)
        require_apart(out, index.root)
        _require_batches(config, index)
        _require_labels(config, index)
        if begins and config.init_from is not None:
            initial_weights(config)
        weights = check_weights(config.taps, config.vgg_weights) if config.taps else "none: no taps"
        pack = Pack.of(index, config.frame, config.align)
        pack.check()
        warn_of_few(index.labels[index.rows("train")], index.attributes)
        if begins and config.init_from is None:
            _warn_of_few_steps(config, index)
        return cls(config, pack, out, place, weights)

    def data(self) -> FaceData:
        """The packed images; packs them if that has not been done."""
        data = self.pack.data()
        _require_batches(self.config, data.index)  # damaged images may be left out
        return data

    def write_contact_sheet(self) -> Path:
        """Draws some training images as the network will see them, into a PNG file beside the run folder.

        Raises:
            DataError: none of them can be used.
            RunError: a file is in the way, or the place cannot be written to.
        """
        path = self.out.absolute().with_name(f"{self.out.absolute().name}-contact-sheet.png")
        contact_sheet.write(path, self.pack)
        return path

    def to_json(self) -> dict[str, Any]:
        """What the run would do, as JSON types."""
        index, config = self.pack.index, self.config
        steps_per_epoch = config.steps_per_epoch(len(index.rows("train")))
        return {
            "data": str(index.root),
            "layout": index.layout,
            "attributes": len(index.attributes),
            "left_out": len(index.left_out),
            "images": {split: len(index.rows(split)) for split in SPLITS},
            "packed": str(self.pack.path),
            "packed_bytes_to_write": self.pack.missing_bytes,
            "packed_bytes_free": self.pack.free_bytes(),
            "out": str(self.out),
            "steps_per_epoch": steps_per_epoch,
            "steps": steps_per_epoch * config.epochs,
            "device": str(self.place.device),
            "dtype": str(self.place.dtype).removeprefix("torch."),
            "perceptual_weights": self.perceptual_weights,
        }


def _require_out(out: Path, resume: bool) -> None:
    """The folder can be written, and holds no run unless that is to be resumed."""
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: is a file; give a folder")
    require_free(out, resume)
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise RunError(f"--out {out}: {above} cannot be written to ({error.strerror}); choose another place") from error


def _require_batches(config: TrainConfig, index: Index) -> None:
    """Batch norm needs two values a channel, so two images where the deepest features are one pixel."""
    left = len(index.rows("train")) % config.batch_size
    if left == 1 and config.model.bottleneck[1:] == (1, 1):
        raise ConfigError(
            f"--batch-size {config.batch_size}: leaves one of the {len(index.rows('train'))} training images for the "
            "last batch, and this network needs two; choose another batch size"
        )


def _require_labels(config: TrainConfig, index: Index) -> None:
    """An attribute term needs attributes; that of a preset is left out without them."""
    if not config.attribute_weight or index.attributes:
        return
    preset = PRESETS[config.preset]() if config.preset in PRESETS else TrainConfig()
    if config.attribute_weight != preset.attribute_weight:
        raise ConfigError(
            f"--attribute-weight {config.attribute_weight}: {index.root} is a {index.layout} and has no attributes to "
            "learn from; leave it out, or give a data set with labels or --labels FILE"
        )
    logger.info("%s has no attributes: the attribute term of the preset %s is left out", index.root, config.preset)


def _warn_of_few_steps(config: TrainConfig, index: Index) -> None:
    images = len(index.rows("train"))
    steps_per_epoch = config.steps_per_epoch(images)
    steps = steps_per_epoch * config.epochs
    schedule = Schedule(config.schedule, config.lr_gamma, steps_per_epoch, steps)
    amount = sum(map(schedule.factor, range(steps)))
    if amount >= MIN_STEPS_AT_PEAK:
        return
    fades = config.schedule == "step" and config.lr_gamma < 1
    more = f"an --lr-gamma nearer to 1 (now {config.lr_gamma:g})" if fades else f"more --epochs (now {config.epochs})"
    logger.warning(
        "this run is short: its %d steps amount to %.0f at the peak learning rate, and below %d reconstructions may "
        "stay blurs; give more images (now %d), a smaller --batch-size (now %d) or %s; training goes on",
        *(steps, amount, MIN_STEPS_AT_PEAK, images, config.batch_size, more),
    )
