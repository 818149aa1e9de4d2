import sys

import gpu_stand_in
import pytest

from engine.backends import Options
from engine.errors import BackendError
from export.engines.candidate import Option
from export.engines.support import Support
from export.errors import InputError


def options(*pairs: tuple[str, str], device: str = "cpu") -> list[Option]:
    return [Option(backend, device, precision) for backend, precision in pairs]


ORT32, VINO32, VINO16 = options(("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
ORT8, VINO8 = options(("onnxruntime", "int8"), ("openvino", "int8"))
ORT16, ORT16_CUDA = Option("onnxruntime", "cpu", "fp16"), Option("onnxruntime", "cuda", "fp16")
TRT16, TRT8 = options(("tensorrt", "fp16"), ("tensorrt", "int8"), device="cuda")
EVERYTHING = Support([ORT32, VINO32, VINO16])
WITH_INT8 = Support([ORT32, ORT8, VINO32, VINO8])
NO_GPU = Support([ORT32, ORT16, ORT8], {ORT16_CUDA: "no CUDA", **dict.fromkeys((TRT16, TRT8), "not installed")})
OLD_CPU = Support([ORT32, VINO32], {VINO16: "this CPU has no units for bf16"})


@pytest.mark.parametrize(
    ("backend", "device", "precision", "left"),
    [
        ("auto", "auto", "auto", [ORT32, VINO32, VINO16]),
        ("auto", "cpu", "auto", [ORT32, VINO32, VINO16]),
        ("openvino", "auto", "auto", [VINO32, VINO16]),
        ("auto", "auto", "fp32", [ORT32, VINO32]),
        ("auto", "auto", "bf16", [VINO16]),
        ("onnxruntime", "auto", "fp32", [ORT32]),
    ],
)
def test_the_flags_leave_what_is_supported(backend: str, device: str, precision: str, left: list[Option]) -> None:
    assert EVERYTHING.choose(backend, device, precision) == left


@pytest.mark.parametrize(
    ("support", "flags", "message"),
    [
        (
            EVERYTHING,
            ("onnxruntime", "auto", "bf16"),
            "--backend onnxruntime --precision bf16: not supported; "
            "supported here: onnxruntime on cpu (fp32); openvino on cpu (fp32, bf16)",
        ),
        (
            NO_GPU,
            ("tensorrt", "auto", "auto"),
            "--backend tensorrt --precision auto: not supported (tensorrt fp16 on cuda: not installed); "
            "supported here: onnxruntime on cpu (fp32, fp16, int8)",
        ),
        (
            NO_GPU,
            ("auto", "auto", "fp16"),
            "--backend auto --precision fp16: not supported (onnxruntime fp16 on cuda: no CUDA; "
            "tensorrt fp16 on cuda: not installed); supported here: onnxruntime on cpu (fp32, fp16, int8)",
        ),
        (
            NO_GPU,
            ("onnxruntime", "cuda", "auto"),
            "--backend onnxruntime --device cuda --precision auto: not supported (onnxruntime fp16 on cuda: no CUDA); "
            "supported here: onnxruntime on cpu (fp32, fp16, int8)",
        ),
        (
            OLD_CPU,
            ("openvino", "auto", "bf16"),
            "--backend openvino --precision bf16: not supported (openvino bf16 on cpu: this CPU has no "
            "units for bf16); supported here: onnxruntime on cpu (fp32); openvino on cpu (fp32)",
        ),
        (
            Support([], {ORT32: "not installed", VINO32: "not installed"}),
            ("onnxruntime", "cpu", "fp32"),
            "--backend onnxruntime --device cpu --precision fp32: not supported (onnxruntime fp32 on cpu: not "
            "installed); supported here: nothing",
        ),
    ],
)
def test_anything_else_is_refused_with_what_there_is(
    support: Support, flags: tuple[str, str, str], message: str
) -> None:
    with pytest.raises(InputError) as refusal:
        support.choose(*flags)
    assert str(refusal.value) == message


def test_auto_means_int8_only_within_a_budget() -> None:
    assert WITH_INT8.choose("auto", "auto", "auto") == [ORT32, VINO32]
    assert WITH_INT8.choose("auto", "auto", "auto", budget=True) == [ORT32, ORT8, VINO32, VINO8]
    assert WITH_INT8.choose("openvino", "auto", "fp32", budget=True) == [VINO32]
    assert WITH_INT8.choose("auto", "auto", "int8") == [ORT8, VINO8]
    assert WITH_INT8.choose("openvino", "auto", "int8") == [VINO8]
    assert NO_GPU.why_not("auto", "auto", "auto") == [
        "onnxruntime fp16 on cuda: no CUDA",
        "tensorrt fp16 on cuda: not installed",
    ]
    assert NO_GPU.why_not("auto", "auto", "auto", budget=True)[1:] == ["tensorrt fp16, int8 on cuda: not installed"]


def test_one_reason_is_given_once() -> None:
    ort32 = Option("onnxruntime", "cuda", "fp32")
    support = Support([], {ort32: "no CUDA", ORT16_CUDA: "no CUDA", TRT16: "no CUDA"})
    assert support.why_not("auto", "cuda", "auto") == [
        "onnxruntime fp32, fp16 on cuda: no CUDA",
        "tensorrt fp16 on cuda: no CUDA",
    ]


def test_fp16_on_the_cpu_which_computes_it_as_fp32_is_for_those_who_ask_for_the_cpu() -> None:
    assert NO_GPU.choose("auto", "cpu", "fp16") == NO_GPU.choose("onnxruntime", "cpu", "fp16") == [ORT16]
    assert ORT16 not in NO_GPU.choose("auto", "auto", "auto")


def test_what_only_other_machines_run_is_built_by_name() -> None:
    elsewhere = options(*(("tensorrt-rtx", name) for name in ("fp32", "fp16", "int8")), device="cuda")
    _, half, small = elsewhere
    support = Support([VINO32, VINO16], {half: "no GPU"}, elsewhere)
    assert support.choose("auto", "auto", "auto") == [VINO32, VINO16]
    assert support.choose("tensorrt-rtx", "auto", "auto") == support.choose("tensorrt-rtx", "cuda", "auto") == [half]
    assert support.choose("tensorrt-rtx", "auto", "int8") == [small]
    for backend, device in (("auto", "auto"), ("auto", "cuda")):
        with pytest.raises(
            InputError,
            match=r"\(tensorrt-rtx fp16 on cuda: no GPU\).*by name: tensorrt-rtx on cuda \(fp32, fp16, int8\)",
        ):
            support.choose(backend, device, "fp16")


def test_what_is_installed_is_found() -> None:
    assert ORT32 in Support.find().here


def test_int8_needs_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    support = Support.find()
    assert "int8" not in {option.precision for option in support.here}
    with pytest.raises(InputError, match=r"onnxruntime int8 on cpu: .*pip install 'dfc-vae\[int8\]'"):
        support.choose("onnxruntime", "auto", "int8")


def test_what_is_missing_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def refuse(cls: object, options: Options) -> None:
        if options.precision == "bf16":
            raise BackendError("no units for bf16")

    monkeypatch.setattr("engine.backends.openvino.OpenVinoBackend.check", classmethod(refuse))
    support = Support.find()
    assert VINO16 not in support.here
    assert support.missing[VINO16] == "no units for bf16"


def test_the_gpu_that_is_asked_for_is_the_one_that_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = gpu_stand_in.install(monkeypatch).cuda
    assert Option("tensorrt", "cuda", "fp16") in Support.find().here
    assert Support.find("cuda:1").missing[Option("tensorrt", "cuda:1", "fp16")].startswith("CUDA finds no GPU cuda:1")
    cuda.gpus = 2
    assert Option("tensorrt", "cuda:1", "fp16") in Support.find("cuda:1").here
