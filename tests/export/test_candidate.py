from dataclasses import replace

from engine.bundle import Engine
from export.engines.candidate import Candidate

FAST = Candidate("openvino", "cpu", "bf16", "product", "phases", True)
SLOW = Candidate("onnxruntime", "cpu", "fp32", "plain", "tail", False)
SMALL = Candidate("openvino", "cpu", "int8", "plain", "phases", False)
GPU = Candidate("tensorrt", "cuda", "fp16", "product", "plain", False)
SMALL_GPU = Candidate("tensorrt", "cuda", "int8", "plain", "plain", False)


def test_a_candidate_names_itself() -> None:
    assert str(FAST) == "openvino bf16 on cpu, encoder product, decoder phases, batches split over the threads"
    assert str(SLOW) == "onnxruntime fp32 on cpu, encoder plain, decoder tail"


def test_bf16_is_the_runtimes_so_that_its_graphs_are_those_in_fp32() -> None:
    assert FAST.files == FAST.graphs == FAST.portable == ("encoder.product.onnx", "decoder.phases.onnx")
    assert SLOW.files == ("encoder.onnx", "decoder.tail.onnx")


def test_int8_and_fp16_are_in_graphs_of_their_own() -> None:
    assert SMALL.portable == ("encoder.onnx", "decoder.phases.onnx")
    assert SMALL.files == SMALL.graphs == ("encoder.int8.onnx", "decoder.phases.int8.onnx")
    assert GPU.graphs == ("encoder.product.fp16.onnx", "decoder.fp16.onnx")


def test_tensorrt_loads_plans_and_reads_symmetric_int8_only() -> None:
    assert GPU.files == ("encoder.product.fp16.plan", "decoder.fp16.plan")
    assert SMALL_GPU.graphs == ("encoder.int8-symmetric.onnx", "decoder.int8-symmetric.onnx")
    assert SMALL_GPU.files == ("encoder.int8-symmetric.plan", "decoder.int8-symmetric.plan")
    assert (GPU.edit, SMALL_GPU.edit, FAST.edit) == ("edit.product.fp16.plan", "edit.int8-symmetric.plan", None)
    assert replace(GPU, backend="tensorrt-rtx", decoder="tail").edit == "edit.product.tail.fp16.rtx.plan"
    assert (SMALL_GPU.symmetric, SMALL.symmetric) == (True, False)


def test_the_manifest_says_through_which_stages_it_went() -> None:
    rewritten = ("encoder.product.onnx", "decoder.phases.onnx")
    assert FAST.engine == Engine(*rewritten, split=True, stages={"rewritten": rewritten})
    assert SMALL.engine.stages == {
        "rewritten": ("encoder.onnx", "decoder.phases.onnx"),
        "reduced": ("encoder.int8.onnx", "decoder.phases.int8.onnx"),
    }
    assert SMALL_GPU.engine == Engine(
        *SMALL_GPU.files,
        stages={"reduced": ("encoder.int8-symmetric.onnx", "decoder.int8-symmetric.onnx")},
        edit="edit.int8-symmetric.plan",
    )
    assert Candidate("onnxruntime", "cpu", "fp32", "plain", "plain", False).engine == Engine()
