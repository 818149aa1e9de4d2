"""Configuration of a training run: typed, frozen, validated, and written into the run folder."""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from framing import CELEBA_SOURCE, Frame
from trainer.errors import ConfigError

VGG19_TAPS = (
    "relu1_1", "relu1_2", "relu2_1", "relu2_2",
    "relu3_1", "relu3_2", "relu3_3", "relu3_4",
    "relu4_1", "relu4_2", "relu4_3", "relu4_4",
    "relu5_1", "relu5_2", "relu5_3", "relu5_4",
)  # fmt: skip
"""The ReLU outputs of VGG19 in order of depth: what `taps` may name."""

Kind = Literal["mean", "adjusted", "svm"]
"""Kinds of attribute directions, which `trainer.artifacts.directions` describes."""

NOT_PART_OF_RESULT = (
    "preset", "device", "compile", "deterministic", "threads", "log_every", "save_minutes",
    "vgg_weights", "labels", "skip_damaged", "directions",
)  # fmt: skip
"""Fields that do not decide what weights a run comes to; of VGG19's weights and the labels the content does, not the
name of the file."""
RANDOM = Path("random")
"""As `vgg_weights`: weights that are drawn from the seed."""
RETIRED = ("ema_decay",)
"""Fields of older versions that decided nothing that a reader of a run asks for."""
CHANGEABLE = ("epochs", "lr", "muon_lr", "grad_clip")
"""Fields that a run that is gone on with may change; config.json says from which step on."""


_AtLeastOne = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_WORDING = {
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
}
"""Pydantic's words for what a field must be, and ours."""


def flag_of(name: str) -> str:
    """The command line's name of a field."""
    return f"--{name.replace('_', '-')}"


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide what a run computes, those of the model beside the others."""
    flat = values | dataclasses.asdict(ModelConfig()) | values["model"]
    return {key: value for key, value in flat.items() if key not in (*NOT_PART_OF_RESULT, *CHANGEABLE, "model")}


@functools.cache
def _adapters(config: type) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(kind) for name, kind in get_type_hints(config, include_extras=True).items()}


def _require_types(config: "ModelConfig | TrainConfig") -> None:
    """Makes of every field what it is declared as, such as a path of a file's name; flags are that already.

    Raises:
        ConfigError: a field can't be that, lies beyond its bounds, or is none of the words that it may be.
    """
    kind: type = type(config)
    for name, adapter in _adapters(kind).items():
        value = getattr(config, name)
        try:
            object.__setattr__(config, name, adapter.validate_python(value))
        except ValidationError as error:
            rule = error.errors(include_url=False)[0]["msg"]
            for theirs, ours in _WORDING.items():
                rule = rule.replace(theirs, ours)
            raise ConfigError(f"{flag_of(name)} {value}: {rule}") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the VAE (seed: 64 pixels, 128 latents, five blocks)."""

    image_size: int = 64
    """Side of the square RGB image, pixels; a multiple of 2 to the number of blocks, so of 32 for five."""
    latent_dim: _AtLeastOne = 128
    """Size of the latent vector."""
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Channels after each encoder block, one number a block (3 to 6); the decoder mirrors them."""
    kernel_size: Literal[3, 4] = 3
    """Side of the strided convolutions' kernels. 3: seed; 4: paper, and no checkerboard in transposed ones."""
    decoder: Literal["transposed", "nearest"] = "transposed"
    """How the decoder doubles its size. transposed: seed; nearest: enlarge, then convolve (paper)."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require(
            3 <= len(self.channels) <= 6 and all(c > 0 for c in self.channels),
            f"--channels {' '.join(map(str, self.channels))}: must be three to six positive numbers, such as "
            "32 64 128 256 512",
        )
        multiple = 2 ** len(self.channels)
        _require(
            self.image_size > 0 and self.image_size % multiple == 0,
            f"--image-size {self.image_size}: must be a positive multiple of {multiple} (2 to the number of "
            "--channels), such as 64 or 128",
        )

    @property
    def bottleneck(self) -> tuple[int, int, int]:
        """Shape of the deepest features: channels, height, width."""
        side: int = self.image_size // 2 ** len(self.channels)
        return self.channels[-1], side, side


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. `trainer.presets` holds the named ones."""

    preset: str = "seed"
    """Named configuration to start from; every other flag overrides one of its values."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the VAE."""

    labels: Path | None = None
    """CSV of labels to take instead of the data set's own: header `file,Smiling,...`, a row an image, values 0/1, -1/1
    or False/True; names are paths in the data set, or base names where only one image has them."""
    split_by: Literal["name", "folder"] = "name"
    """How to split images that come without splits. name: each by itself; folder: all images of a folder together, so
    that with a folder a person nobody is in two splits."""
    skip_damaged: int = 0
    """Most images to leave out because they are listed and absent, or damaged; the run's config.json lists them."""
    crop: Annotated[int, Field(ge=0)] = 148
    """Side of the centre crop taken before resizing, pixels; 0 for images that are cropped already: all of them is
    used."""
    source: tuple[int, int] = CELEBA_SOURCE
    """Width and height of the aligned pictures that the crop is taken from, pixels. A picture of another size is scaled
    to it first, around its middle; one of the model's own size is taken as it is."""
    align: bool = False
    """Find the face in each picture and bring its eyes and mouth to where CelebA has them (pip install '.[align]').
    Of several faces the largest is taken, which is said."""
    limit_train: Annotated[int, Field(ge=0)] = 0
    """Train on this many images of the train split, drawn once and for all: any run with the same number has the same
    ones, and one with more has these among them. 0 for all of them."""
    flip: bool = True
    """Mirror each training image left to right with probability one half."""

    epochs: _AtLeastOne = 10
    """Passes over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images per step; at least two, as batch norm needs them."""
    optimizer: Literal["adam", "muon", "muon-sgd"] = "adam"
    """muon: Muon for the kernels inside the network, Adam for everything else; muon-sgd: SGD for everything else."""
    lr: _Positive = 0.05
    """Peak learning rate of Adam or SGD."""
    momentum: Annotated[_NotNegative, Field(lt=1)] = 0.9
    """Momentum of SGD."""
    muon_lr: _Positive = 0.04
    """Peak learning rate of Muon; follows the same schedule."""
    schedule: Literal["constant", "step", "one-cycle"] = "step"
    """step: times `lr_gamma` after each epoch; one-cycle: warm-up to `lr`, then cosine to zero, per step."""
    lr_gamma: _Positive = 0.1
    """Factor of the step schedule."""
    grad_clip: _NotNegative = 0.0
    """Largest norm of the gradient, longer ones are scaled down; 0 for no limit."""
    seed: int = 0
    """Seed of the weights, the order of the images, the flips and the latent noise."""

    rec_weight: _NotNegative = 1.0
    """Weight of the pixel and feature terms together (seed's `rec_weight`)."""
    pixel_weight: _NotNegative = 1.0
    """Weight of the pixel term beside the feature terms (seed: 1; the paper has none: 0)."""
    kl_weight: _NotNegative = 1.0
    """Weight of the KL term (seed's `kl_weight`)."""
    kl_warmup: Annotated[_NotNegative, Field(le=1)] = 0.0
    """Share of the run's steps over which the KL weight rises linearly from zero."""
    attribute_weight: _NotNegative = 0.0
    """Weight of the cross-entropy of a linear attribute head on z (seed, paper: none). It pulls every attribute onto a
    straight direction; the head itself is thrown away after training."""
    taps: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    """VGG19 activations compared by the perceptual term; none for a plain VAE."""
    feature_weight: _NotNegative = 1.0
    """Weight of the sum of feature terms beside the pixel term (seed: 1)."""
    normalise_features: bool = False
    """Divide each tap's activations by their mean over training images, so that any VGG19 weights have one scale."""
    feature_share: Annotated[_Positive, Field(le=1)] = 1.0
    """Share of each batch on which the feature terms are computed: an unbiased estimate of them, cheaper."""
    vgg_weights: Path | None = None
    """File with VGG19 weights (a torchvision-layout state_dict), or `random` for random ones, which work, but less
    well; default: torchvision's ImageNet weights, from the hub cache or downloaded."""
    init_from: Path | None = None
    """Run folder whose weights training starts from, for fine-tuning; it needs the same sizes of the model."""

    directions: Kind = "mean"
    """Kind of attribute directions. mean: mean differences (seed, paper); adjusted: with the other attributes held
    equal, which edits with fewer side effects; svm: normals of linear SVMs. All are as long as the mean difference.
    `python -m trainer directions` changes them later."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto: bf16 where the device has units for it. Weights stay in FP32. FP32 is FP32: never
    TF32 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: the GPU if there is one."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: on a GPU, for runs that are long enough to earn back the minute that it takes."""
    deterministic: bool = False
    """On a GPU, use algorithms that give the same bits every time, so that a resumed run ends at the very same weights;
    slower. On a CPU it is so without."""
    threads: _AtLeastOne | None = None
    """Threads that compute on a CPU; default: as many as before in a run that is gone on with, else $OMP_NUM_THREADS,
    else as many as the machine has free cores when the run starts."""
    log_every: _AtLeastOne = 10
    """Steps between two records in metrics.jsonl and TensorBoard."""
    save_minutes: _Positive = 10.0
    """Minutes between two checkpoints within an epoch; there is one after every epoch as well."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require(self.skip_damaged >= 0, f"--skip-damaged {self.skip_damaged}: must be 0 or a number of images")
        width, height = self.source
        _require(min(width, height) > 0, f"--source {width} {height}: must be a width and a height above 0, pixels")
        _require(
            self.crop <= min(width, height),
            f"--crop {self.crop}: does not fit into --source {width} {height}; use --crop 0 for images that are "
            "cropped already, or give the size of your aligned pictures as --source",
        )
        _require(
            not self.align or self.frame.landmarks is not None,
            f"--align: brings faces to CelebA's frame; leave out --crop {self.crop} and --source {width} {height}, "
            "or leave out --align",
        )
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and {2**63 - 1}")
        unknown = [tap for tap in self.taps if tap not in VGG19_TAPS]
        _require(not unknown, f"--taps: unknown {', '.join(unknown)}; VGG19 has {', '.join(VGG19_TAPS)}")
        _require(len(set(self.taps)) == len(self.taps), f"--taps {' '.join(self.taps)}: names one tap twice")
        deepest = max((int(tap[4]) for tap in self.taps), default=1)  # the number of VGG19's block
        _require(
            self.model.image_size >= 2 ** (deepest - 1),
            f"--image-size {self.model.image_size}: VGG19 halves it {deepest - 1} times before relu{deepest}_1, and "
            "nothing is left; give shallower --taps or larger images",
        )
        _require(
            bool(self.taps) or self.vgg_weights is None,
            f"--vgg-weights {self.vgg_weights}: of no use without taps; give --taps or leave it out",
        )
        for name in ("vgg_weights", "labels"):  # a run looks for them again, wherever it is gone on with or judged
            path = getattr(self, name)
            if path not in (None, RANDOM):
                object.__setattr__(self, name, path.absolute())
        features = self.feature_weight if self.taps else 0.0
        _require(
            self.rec_weight * (self.pixel_weight + features) > 0,
            f"--rec-weight {self.rec_weight}, --pixel-weight {self.pixel_weight}, --feature-weight {features}: nothing "
            "would be reconstructed; give --rec-weight and one of the others, with --taps for the last, more than 0",
        )

    @property
    def frame(self) -> Frame:
        """What pictures are brought to before the model sees them."""
        return Frame.of(self.model.image_size, self.crop, self.source)

    def steps_per_epoch(self, num_images: int) -> int:
        """Steps over so many training images; the last batch of an epoch may be smaller than the others."""
        return math.ceil(num_images / self.batch_size)

    def unused_fields(self) -> dict[str, str]:
        """Fields that this configuration makes no use of, each with the reason and what to do.

        A field may be unused at the value that its preset gave it; the command line refuses it when a user gives it.
        """
        unused: dict[str, str] = {}
        if not self.taps:
            fields = ("feature_weight", "normalise_features", "feature_share")
            unused |= dict.fromkeys(fields, "there are no taps; leave it out, or give --taps")
        if not self.crop:
            unused["source"] = "--crop 0 takes whole images; leave it out, or give --crop"
        if self.optimizer == "adam":
            unused["muon_lr"] = f"the optimizer is {self.optimizer}; give --lr, or add --optimizer muon"
        if self.optimizer != "muon-sgd":
            unused["momentum"] = f"the optimizer is {self.optimizer}; leave it out, or add --optimizer muon-sgd"
        if self.schedule != "step":
            unused["lr_gamma"] = f"the schedule is {self.schedule}; leave it out, or add --schedule step"
        if not self.kl_weight:
            unused["kl_warmup"] = "--kl-weight is 0; leave it out, or give --kl-weight"
        return unused

    def differences(self, other: dict[str, Any]) -> list[str]:
        """The fields in which a run with `other`, from `to_json`, would compute something else: `field: other -> this`.

        Those that a run may change are not among them. A field that `other` lacks, being of an older version, counts as
        having its default.
        """
        default = TrainConfig().to_json()
        theirs, ours = (_flat(default | values) for values in (other, self.to_json()))
        return [f"{key}: {theirs.get(key)} -> {ours[key]}" for key in ours if ours[key] != theirs.get(key)]

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON types."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`.

        Raises:
            ConfigError: a field is unknown, as in a file of another version.
        """
        known = {name: value for name, value in values.items() if name not in RETIRED}
        try:
            return cls(**known | {"model": ModelConfig(**values["model"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"the configuration does not fit this version ({error}); train again") from error
