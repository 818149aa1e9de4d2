"""The flags that all commands have which make engines, and the candidates that they leave."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from engine.backends import BACKENDS, CPU, DEVICE_RULE, cores, is_device
from engine.backends.tensorrt import TARGETS
from engine.bundle import LARGEST_BATCH
from engine.proof.figures import TOLERANCES, Tolerances
from export.command import MOST_THREADS, require_between
from export.engines.candidate import Candidate, Option
from export.engines.support import AUTO, Support
from export.errors import InputError
from export.graphs.names import DECODER_FORMS, ENCODER_FORMS, INT8_ENCODERS, DecoderForm, EncoderForm

Form = TypeVar("Form", EncoderForm, DecoderForm)

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[(AUTO, *BACKENDS)]

_TOLERANCES = {
    "latent_tolerance": "latents",
    "level_tolerance": "levels",
    "min_psnr": "psnr_db",
    "mean_tolerance": "mean_levels",
    "bias_tolerance": "bias_levels",
    "logit_tolerance": "logits",
}
"""Flags, and the fields of `Tolerances` that they change."""


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """What engines to make, and how exact they must be."""

    out: Path
    """Bundle folder to write; must not exist yet, unless with --force."""
    backend: BackendName = AUTO
    """Runtime that will serve the bundle: onnxruntime (on the CPU fp32, fp16, int8; on a GPU fp32, fp16), openvino
    (CPU; fp32, bf16, int8), tensorrt (GPU; fp32, fp16, int8; keeps its timing cache beside the bundle, in
    OUT.timing.cache) or tensorrt-rtx (the same; by name it is built where no GPU is, too, and its bundle is then
    unproven)."""
    device: str = AUTO
    """Where the engines will compute: auto, cpu, cuda, or one of several GPUs of this machine, such as cuda:1."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Arithmetic of the engines: fp32 anywhere, bf16 where the CPU has units for it, fp16 on a GPU; int8 is calibrated
    on half of a run's held-out images (parity is measured on the others), or without the run on images that the model
    draws, and auto takes it only with --min-psnr."""
    encoder: Literal["auto"] | EncoderForm = "auto"
    """Exact form of the encoder; product: its last convolution as a matrix product."""
    decoder: Literal["auto"] | DecoderForm = "auto"
    """Exact form of the decoder; tail: first layers merged, last one on half the side; phases: the one before too."""
    split: Literal["auto", "yes", "no"] = "auto"
    """Whether each thread of a CPU computes a share of a batch alone, or all compute the whole batch together."""
    compute_capability: tuple[str, ...] = ()
    """GPUs that tensorrt-rtx builds for, such as 8.9 12.0; none: 8.0, 8.6, 8.9, 12.0 and newer."""
    hardware_compatibility: Literal["none", "same-compute-capability", "ampere-plus"] = "none"
    """Which other GPUs a plan of tensorrt is for, at the cost of some kernels."""
    tactics: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The only sources of kernels that tensorrt may use, where a machine lacks the libraries of others; none: all."""
    max_batch: int | None = None
    """Largest batch that the engines take, images, at most 4,096; None: that of the bundle."""
    threads: int | None = None
    """Compute threads of the engines while they are measured; None: all cores."""
    min_psnr: float | None = None
    """Quality budget: smallest PSNR of any image against PyTorch FP32, dB; None: the precision's. With --precision
    auto, int8 joins the contest, which then takes minutes, and the fastest engine within the budget wins. Single pixels
    may then be off as far as int8's, whatever the precision below fp32."""
    explain: bool = False
    """Say what fp16 or int8 costs single layers of an engine that passes, too; one that fails is explained anyway."""
    latent_tolerance: float | None = None
    """Largest error of mu and log_var against PyTorch FP32, as a share of their spread; None: the precision's."""
    level_tolerance: int | None = None
    """Largest difference of any pixel against PyTorch FP32, 8-bit levels; None: the precision's."""
    mean_tolerance: float | None = None
    """Largest mean difference of images against PyTorch FP32, 8-bit levels; None: the precision's."""
    bias_tolerance: float | None = None
    """Largest mean of the signed difference, 8-bit levels; None: the precision's."""
    logit_tolerance: float | None = None
    """Largest shift of the mean logit of the run's classifier in edited images against PyTorch FP32, as a share of what
    the edit itself shifts; None: the precision's."""
    force: bool = False
    """Replace the bundle that is at --out; only ever a bundle."""

    def __post_init__(self) -> None:
        if self.device != AUTO and not is_device(self.device):
            raise InputError(f"--device {self.device}: {DEVICE_RULE}")
        require_between("max-batch", self.max_batch, 1, LARGEST_BATCH)
        require_between("threads", self.threads, 1, MOST_THREADS)
        for name in _TOLERANCES:
            require_between(name.replace("_", "-"), getattr(self, name), 0)
        for target in self.compute_capability:
            if target not in TARGETS:
                raise InputError(
                    f"--compute-capability {target}: TensorRT for RTX builds for {', '.join(TARGETS)}; other GPUs, "
                    "such as T4 (7.5), H100 and H200 (9.0), are for --backend tensorrt, on that machine"
                )
        if self.compute_capability and self.backend != "tensorrt-rtx":
            raise InputError(
                f"--compute-capability: --backend {self.backend} builds for this machine; take --backend tensorrt-rtx"
            )
        if self.hardware_compatibility != "none" and self.backend != "tensorrt":
            raise InputError(
                f"--hardware-compatibility {self.hardware_compatibility}: only --backend tensorrt has that choice; "
                "tensorrt-rtx builds for several GPUs by itself (--compute-capability)"
            )

    @property
    def cores(self) -> int:
        """Compute threads: as asked, or all cores."""
        return self.threads or cores()

    def tolerances(self, precision: str) -> Tolerances:
        """How far engines in a precision may be from PyTorch."""
        given = {name: getattr(self, flag) for flag, name in _TOLERANCES.items()}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.min_psnr is not None and precision != "fp32":
            # The budget decides, not single pixels at edges, which bf16 is held to more tightly than int8.
            changes.setdefault("levels", TOLERANCES["int8"].levels)
        return dataclasses.replace(TOLERANCES[precision], **changes)

    def candidates(self, support: Support) -> list[Candidate]:
        """Everything that the flags leave to choose from.

        Raises:
            InputError: nothing is left.
        """
        found = [
            Candidate(*option, encoder, decoder, split)
            for option in support.choose(self.backend, self.device, self.precision, budget=self.min_psnr is not None)
            for split in self._splits(option)
            for encoder in _forms(
                self.encoder, INT8_ENCODERS if option.precision == "int8" else ENCODER_FORMS, option in support.here
            )
            for decoder in _forms(self.decoder, DECODER_FORMS, option in support.here)
        ]
        if not found:
            if self.encoder != "auto" and self.precision == "int8":
                raise InputError(f"--encoder {self.encoder}: int8 takes only {', '.join(INT8_ENCODERS)}")
            raise InputError(f"--split yes: batches are split over the threads of a CPU, and not by {self.backend}")
        return found

    def _splits(self, option: Option) -> tuple[bool, ...]:
        if option.device != CPU:
            return () if self.split == "yes" else (False,)
        if self.split == "auto":
            return (False, True) if self.cores != 1 and self.max_batch != 1 else (False,)
        return (self.split == "yes",)


def _forms(named: str, forms: tuple[Form, ...], runs: bool) -> tuple[Form, ...]:
    """The form that is named, or all; without a GPU there is no contest, and the plain one, the first, will do."""
    if named != AUTO:
        return tuple(form for form in forms if form == named)
    return forms if runs else forms[:1]
