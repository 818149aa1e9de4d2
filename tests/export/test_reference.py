import numpy as np
import torch
from runs import LATENT_DIM, small_vae, smooth_images

from export.proof.reference import CompiledBackend, EagerBackend


def test_the_rival_computes_what_the_truth_computes_in_bfloat16() -> None:
    model = small_vae()
    truth, rival = EagerBackend(model), CompiledBackend(model)
    images = smooth_images(3, 64)
    latents = np.random.default_rng(0).standard_normal((3, LATENT_DIM), dtype=np.float32)
    # Compiling takes a minute; the same code runs without.
    with torch.compiler.set_stance("force_eager"):
        for values, reference in zip(rival.encode(images), truth.encode(images), strict=True):
            assert values.dtype == np.float32
            assert 0 < np.abs(values - reference).max() < 0.1 * np.abs(reference).max()
        decoded = rival.decode(latents)
    difference = np.abs(decoded.astype(int) - truth.decode(latents))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert 0 < difference.mean() < 3
    assert next(model.parameters()).dtype == torch.float32
