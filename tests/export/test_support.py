import sys

import pytest

from engine.errors import BackendError
from export.errors import InputError
from export.support import Support

EVERYTHING = Support({"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16")}, ())
WITH_INT8 = Support({"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "int8")}, ())
NO_GPU = Support(
    {"onnxruntime": ("fp32", "int8")},
    ("onnxruntime fp16: no CUDA", "tensorrt fp16: not installed", "tensorrt int8: not installed"),
)
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
            NO_GPU,
            "tensorrt",
            "auto",
            "--backend tensorrt --precision auto: not supported (tensorrt fp16: not installed); "
            "supported here: onnxruntime (fp32, int8)",
        ),
        (
            NO_GPU,
            "auto",
            "fp16",
            "--backend auto --precision fp16: not supported (onnxruntime fp16: no CUDA; tensorrt fp16: not installed); "
            "supported here: onnxruntime (fp32, int8)",
        ),
        (
            NO_GPU,
            "tensorrt",
            "int8",
            "--backend tensorrt --precision int8: not supported (tensorrt int8: not installed); "
            "supported here: onnxruntime (fp32, int8)",
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


def test_auto_never_means_int8() -> None:
    assert WITH_INT8.choose("auto", "auto") == [("onnxruntime", "fp32"), ("openvino", "fp32")]
    assert WITH_INT8.choose("auto", "int8") == [("onnxruntime", "int8"), ("openvino", "int8")]
    assert WITH_INT8.choose("openvino", "int8") == [("openvino", "int8")]
    assert NO_GPU.why_not("auto", "auto") == ["onnxruntime fp16: no CUDA", "tensorrt fp16: not installed"]


def test_what_only_other_machines_run_is_built_by_name() -> None:
    elsewhere: dict[str, tuple[str, ...]] = {"tensorrt-rtx": ("fp32", "fp16", "int8")}
    support = Support({"openvino": ("fp32",)}, ("tensorrt-rtx fp16: no GPU",), elsewhere)
    assert support.choose("auto", "auto") == support.choose("auto", "fp32") == [("openvino", "fp32")]
    assert support.choose("tensorrt-rtx", "auto") == [("tensorrt-rtx", "fp16")]
    assert support.choose("tensorrt-rtx", "int8") == [("tensorrt-rtx", "int8")]
    assert not support.runs("tensorrt-rtx", "fp16")
    with pytest.raises(InputError, match=r"\(tensorrt-rtx fp16: no GPU\).*by name: tensorrt-rtx \(fp32, fp16, int8\)"):
        support.choose("auto", "fp16")


def test_what_is_installed_is_found() -> None:
    assert Support.find().here["onnxruntime"][0] == "fp32"


def test_int8_needs_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    support = Support.find()
    assert all("int8" not in precisions for precisions in support.here.values())
    with pytest.raises(InputError, match=r"onnxruntime int8: .*pip install 'dfc-vae\[int8\]'"):
        support.choose("onnxruntime", "int8")


def test_what_is_missing_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def refuse(precision: str) -> None:
        if precision == "bf16":
            raise BackendError("no units for bf16")

    monkeypatch.setattr("engine.backends.open_vino.require_precision", refuse)
    support = Support.find()
    assert "bf16" not in support.here["openvino"]
    assert "openvino bf16: no units for bf16" in support.missing
