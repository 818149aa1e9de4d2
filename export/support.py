"""Which backends and precisions can be built, and which of them on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from engine.backends import PRECISIONS
from engine.errors import BackendError
from export.errors import InputError


@dataclass(frozen=True)
class Support:
    """What this machine can build and serve.

    Attributes:
        here: Precisions by backend, for the backends that have any here.
        missing: Why the others are not there, one sentence each.
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
        """The pairs that two flags leave, `auto` for any.

        Raises:
            InputError: none is left; names what is supported here and why the rest is not.
        """
        pairs = [
            (name, value)
            for name, values in self.here.items()
            for value in values
            if backend in ("auto", name) and precision in ("auto", value)
        ]
        if not pairs:
            asked = f"--backend {backend} --precision {precision}"
            supported = "; ".join(f"{name} ({', '.join(values)})" for name, values in self.here.items())
            reasons = [reason for reason in self.missing if backend in ("auto", reason.split(" ", maxsplit=1)[0])]
            if backend == "tensorrt":
                reasons = ["engines of TensorRT cannot be built by this version yet"]
            because = f" ({'; '.join(reasons)})" if reasons else ""
            raise InputError(f"{asked}: not supported{because}; supported here: {supported or 'nothing'}")
        return pairs


def _require(backend: str, precision: str) -> None:
    # Each backend's module raises BackendError, with the extra to install, where its runtime is not there.
    if backend == "openvino":
        from engine.backends import open_vino  # noqa: PLC0415

        open_vino.require_precision(precision)
    else:
        import engine.backends.onnx_runtime  # noqa: F401, PLC0415
