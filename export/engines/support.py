"""Which backends, devices and precisions can be built, and which of them on this machine."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from engine.backends import BACKENDS, CPU, Options, kind_of, tensorrt
from engine.errors import BackendError
from export.engines.candidate import Option
from export.errors import InputError
from export.graphs.int8 import require_nncf

AUTO = "auto"


@dataclass(frozen=True)
class Support:
    """What this machine can build and serve."""

    here: Sequence[Option]  # what runs here
    missing: Mapping[Option, str] = field(default_factory=dict)  # why the others do not, one sentence each
    # What can be built here, and runs only on another machine, which is for the user to ask for; `missing` says why.
    elsewhere: Sequence[Option] = ()

    @classmethod
    def find(cls, device: str = AUTO) -> "Support":
        """Asks the installed runtimes: about `device` if it is a GPU, such as cuda:1, otherwise about the first one.

        Raises:
            BackendError: ONNX Runtime is missing, by which the graphs of every build are measured.
        """
        BACKENDS["onnxruntime"].load(CPU)
        here, missing, elsewhere = [], {}, []
        for row in BACKENDS.values():
            for kind, precisions in row.precisions.items():
                for precision in precisions:
                    option = Option(row.name, device if kind_of(device) == kind else kind, precision)
                    try:
                        _require(option)
                        here.append(option)
                    except BackendError as error:
                        missing[option] = str(error)
                        if row.built_anywhere:
                            with suppress(BackendError):
                                _require_builder(option)
                                elsewhere.append(option)
        return cls(here, missing, elsewhere)

    def choose(self, backend: str, device: str, precision: str, *, budget: bool = False) -> list[Option]:
        """What three flags leave, "auto" for any.

        Auto means int8, which changes what is seen, if little, only within a budget for that (`--min-psnr`), and never
        FP16 on a CPU, which computes it as FP32.

        Raises:
            InputError: nothing is left; names what is supported here and why the rest is not.
        """
        flags = Option(backend, device, precision)
        left = [option for option in self.here if _means(flags, option, budget)]
        # Where nothing can be measured, nothing can be chosen: fp16 is what these GPUs are for.
        wanted = flags._replace(precision="fp16" if precision == AUTO else precision)
        if not left and backend != AUTO:
            left = [option for option in self.elsewhere if _means(wanted, option, budget)]
        if not left:
            where = "" if device == AUTO else f" --device {device}"
            asked = f"--backend {backend}{where} --precision {precision}"
            supported = _listed(self.here) or "nothing"
            if self.elsewhere:
                supported += f"; built here for other machines, by name: {_listed(self.elsewhere)}"
            reasons = self.why_not(backend, device, precision, budget=budget)
            because = f" ({'; '.join(reasons)})" if reasons else ""
            raise InputError(f"{asked}: not supported{because}; supported here: {supported}")
        return left

    def why_not(self, backend: str, device: str, precision: str, *, budget: bool = False) -> list[str]:
        """Of what three flags mean, why some is not there."""
        flags = Option(backend, device, precision)
        precisions: dict[tuple[str, str, str], list[str]] = {}
        for option, reason in self.missing.items():
            if _means(flags, option, budget):
                precisions.setdefault((option.backend, option.device, reason), []).append(option.precision)
        return [
            f"{backend} {', '.join(values)} on {device}: {reason}"
            for (backend, device, reason), values in precisions.items()
        ]


def _listed(options: Sequence[Option]) -> str:
    groups = groupby(options, lambda option: option[:2])
    return "; ".join(
        f"{backend} on {device} ({', '.join(option.precision for option in group)})"
        for (backend, device), group in groups
    )


def _means(flags: Option, option: Option, budget: bool) -> bool:
    by_name = option.precision == "int8" and flags.precision == AUTO and not budget
    by_name = by_name or (option[1:] == (CPU, "fp16") and flags.device == AUTO)
    return not by_name and all(flag in (AUTO, value) for flag, value in zip(flags, option, strict=True))


def _require(option: Option) -> None:
    backend, device, precision = option
    BACKENDS[backend].load(device).check(Options(backend=backend, device=device, precision=precision))
    if precision == "int8":
        require_nncf()


def _require_builder(option: Option) -> None:
    """What it takes to build plans that don't run here."""
    tensorrt.load_tensorrt(option.backend)
    if option.precision == "int8":
        require_nncf()
