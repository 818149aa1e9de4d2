"""Which backends and precisions can be built, and which of them on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.backends import OF_PLANS, PRECISIONS
from engine.errors import BackendError
from export.errors import InputError
from export.quantize import require_nncf

ONLY_BY_NAME = ("int8",)
"""Precisions that `auto` never means: they change what is seen, if little, which is for the user to weigh."""


@dataclass(frozen=True)
class Support:
    """What this machine can build and serve.

    Attributes:
        here: Precisions by backend, for the backends that have any here.
        missing: Why the others are not there, one sentence each, beginning with backend and precision.
        elsewhere: Precisions by backend that can be built here, and run only on another machine, which is for the user
            to ask for; `missing` says why.
    """

    here: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]
    elsewhere: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def find(cls) -> Support:
        """Asks the installed runtimes."""
        here: dict[str, tuple[str, ...]] = {}
        elsewhere: dict[str, tuple[str, ...]] = {}
        missing = []
        for backend, precisions in PRECISIONS.items():
            for precision in precisions:
                try:
                    _require(backend, precision)
                except BackendError as error:
                    missing.append(f"{backend} {precision}: {error}")
                    if _can_build(backend, precision):
                        elsewhere[backend] = (*elsewhere.get(backend, ()), precision)
                else:
                    here[backend] = (*here.get(backend, ()), precision)
        return cls(here, tuple(missing), elsewhere)

    def runs(self, backend: str, precision: str) -> bool:
        """Whether engines of a pair that `choose` gave run here."""
        return precision in self.here.get(backend, ())

    def choose(self, backend: str, precision: str) -> list[tuple[str, str]]:
        """The pairs that two flags leave, `auto` for any; for a precision, any but those `ONLY_BY_NAME`.

        Raises:
            InputError: none is left; names what is supported here and why the rest is not.
        """
        pairs = [
            (name, value)
            for name, values in self.here.items()
            for value in values
            if _means(backend, name) and _means(precision, value)
        ]
        # Where nothing can be measured, nothing can be chosen: fp16 is what these GPUs are for.
        wanted = "fp16" if precision == "auto" else precision
        if not pairs and wanted in self.elsewhere.get(backend, ()):
            pairs = [(backend, wanted)]
        if not pairs:
            asked = f"--backend {backend} --precision {precision}"
            supported = _listed(self.here) or "nothing"
            if self.elsewhere:
                supported += f"; built here for other machines, by name: {_listed(self.elsewhere)}"
            reasons = self.why_not(backend, precision)
            because = f" ({'; '.join(reasons)})" if reasons else ""
            raise InputError(f"{asked}: not supported{because}; supported here: {supported}")
        return pairs

    def why_not(self, backend: str, precision: str) -> list[str]:
        """Of what two flags mean, why some is not there."""
        return [
            reason
            for reason in self.missing
            for name, value in [reason.split(":", maxsplit=1)[0].split(" ")]
            if _means(backend, name) and _means(precision, value)
        ]


def _listed(pairs: dict[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{name} ({', '.join(values)})" for name, values in pairs.items())


def _means(flag: str, value: str) -> bool:
    return flag == value or (flag == "auto" and value not in ONLY_BY_NAME)


def _require(backend: str, precision: str) -> None:
    # Each backend's module raises BackendError, with the extra to install, where its runtime is not there.
    if backend == "openvino":
        from engine.backends import open_vino  # noqa: PLC0415

        open_vino.require_precision(precision)
    elif backend in OF_PLANS:
        from engine.backends import tensor_rt  # noqa: PLC0415

        tensor_rt.require_device(backend)
    else:
        from engine.backends import onnx_runtime  # noqa: PLC0415

        onnx_runtime.require_precision(precision)
    if precision == "int8":
        require_nncf()


def _can_build(backend: str, precision: str) -> bool:
    """Whether engines that don't run here can be built here."""
    if backend != "tensorrt-rtx":
        return False
    from engine.backends import tensor_rt  # noqa: PLC0415

    try:
        tensor_rt.load_tensorrt(backend)
        if precision == "int8":
            require_nncf()
    except BackendError:
        return False
    return True
