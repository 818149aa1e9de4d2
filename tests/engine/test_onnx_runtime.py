from pathlib import Path

import numpy as np
import pytest
from tiny_model import images_of, latents_of, random_images

from engine.backends.onnx_runtime import OnnxRuntimeBackend
from engine.errors import BundleError


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_both_graphs_take_any_batch(tiny_bundle: Path, count: int, threads: int | None) -> None:
    backend = OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx", threads)
    images = random_images(count, seed=count)
    images.flags.writeable = False  # as arrays over the bytes of a message are
    mu, log_var = backend.encode(images)
    np.testing.assert_array_equal(mu, latents_of(images))
    np.testing.assert_array_equal(log_var, latents_of(images) / -2)
    np.testing.assert_array_equal(backend.decode(mu + 3.3), images_of(mu + 3.3))


def test_a_missing_graph_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no ONNX graph at .*absent\.onnx"):
        OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "absent.onnx")
