import pytest

from engine.errors import BackendError
from export.errors import InputError
from export.support import Support

EVERYTHING = Support({"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16")}, ())
OLD_CPU = Support({"onnxruntime": ("fp32",), "openvino": ("fp32",)}, ("openvino bf16: this CPU has no units for bf16",))


@pytest.mark.parametrize(
    ("backend", "precision", "pairs"),
    [
        ("auto", "auto", [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]),
        ("openvino", "auto", [("openvino", "fp32"), ("openvino", "bf16")]),
        ("auto", "fp32", [("onnxruntime", "fp32"), ("openvino", "fp32")]),
        ("auto", "bf16", [("openvino", "bf16")]),
        ("onnxruntime", "fp32", [("onnxruntime", "fp32")]),
    ],
)
def test_the_flags_leave_what_is_supported(backend: str, precision: str, pairs: list[tuple[str, str]]) -> None:
    assert EVERYTHING.choose(backend, precision) == pairs


@pytest.mark.parametrize(
    ("support", "backend", "precision", "message"),
    [
        (
            EVERYTHING,
            "onnxruntime",
            "bf16",
            "--backend onnxruntime --precision bf16: not supported; "
            "supported here: onnxruntime (fp32); openvino (fp32, bf16)",
        ),
        (
            EVERYTHING,
            "tensorrt",
            "auto",
            "--backend tensorrt --precision auto: not supported (engines of TensorRT cannot be built by this version "
            "yet); supported here: onnxruntime (fp32); openvino (fp32, bf16)",
        ),
        (
            OLD_CPU,
            "openvino",
            "bf16",
            "--backend openvino --precision bf16: not supported (openvino bf16: this CPU has no units for bf16); "
            "supported here: onnxruntime (fp32); openvino (fp32)",
        ),
        (
            Support({}, ("onnxruntime fp32: not installed", "openvino fp32: not installed")),
            "onnxruntime",
            "fp32",
            "--backend onnxruntime --precision fp32: not supported (onnxruntime fp32: not installed); "
            "supported here: nothing",
        ),
    ],
)
def test_anything_else_is_refused_with_what_there_is(
    support: Support, backend: str, precision: str, message: str
) -> None:
    with pytest.raises(InputError) as refusal:
        support.choose(backend, precision)
    assert str(refusal.value) == message


def test_what_is_installed_is_found() -> None:
    assert Support.find().here["onnxruntime"] == ("fp32",)


def test_what_is_missing_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def refuse(precision: str) -> None:
        if precision == "bf16":
            raise BackendError("no units for bf16")

    monkeypatch.setattr("engine.backends.open_vino.require_precision", refuse)
    support = Support.find()
    assert support.here["openvino"] == ("fp32",)
    assert support.missing == ("openvino bf16: no units for bf16",)
