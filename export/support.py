"""Which backends and precisions can be built, and which of them on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from engine.backends import PRECISIONS
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
    """

    here: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]

    @classmethod
    def find(cls) -> Support:
        """Asks the installed runtimes."""
        here: dict[str, tuple[str, ...]] = {}
        missing = []
        for backend, precisions in PRECISIONS.items():
            for precision in precisions:
                try:
                    _require(backend, precision)
                except BackendError as error:
                    missing.append(f"{backend} {precision}: {error}")
                else:
                    here[backend] = (*here.get(backend, ()), precision)
        return cls(here, tuple(missing))

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
        if not pairs:
            asked = f"--backend {backend} --precision {precision}"
            supported = "; ".join(f"{name} ({', '.join(values)})" for name, values in self.here.items())
            reasons = self.why_not(backend, precision)
            because = f" ({'; '.join(reasons)})" if reasons else ""
            raise InputError(f"{asked}: not supported{because}; supported here: {supported or 'nothing'}")
        return pairs

    def why_not(self, backend: str, precision: str) -> list[str]:
        """Of what two flags mean, why some is not there."""
        return [
            reason
            for reason in self.missing
            for name, value in [reason.split(":", maxsplit=1)[0].split(" ")]
            if _means(backend, name) and _means(precision, value)
        ]


def _means(flag: str, value: str) -> bool:
    return flag == value or (flag == "auto" and value not in ONLY_BY_NAME)


def _require(backend: str, precision: str) -> None:
    # Each backend's module raises BackendError, with the extra to install, where its runtime is not there.
    if backend == "openvino":
        from engine.backends import open_vino  # noqa: PLC0415

        open_vino.require_precision(precision)
    elif backend == "tensorrt":
        from engine.backends import tensor_rt  # noqa: PLC0415

        tensor_rt.require_device()
    else:
        from engine.backends import onnx_runtime  # noqa: PLC0415

        onnx_runtime.require_precision(precision)
    if precision == "int8":
        require_nncf()
