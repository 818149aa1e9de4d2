from collections.abc import Iterator

import pytest
import torch

from trainer.hardware.device import Placement


@pytest.fixture
def settings() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_in_bf16_only_where_that_is_not_emulated(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert Placement.of() == Placement(torch.device("cuda", 0), dtype)
    assert Placement.of(precision="fp32").dtype == torch.float32
    assert not torch.backends.cudnn.allow_tf32  # FP32 is FP32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("settings")
def test_deterministic_algorithms_are_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    Placement(torch.device("cuda"), torch.float32).tune(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    Placement(torch.device("cuda"), torch.float32).tune()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
