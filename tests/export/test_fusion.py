from collections.abc import Callable

import pytest
import torch
from runs import randomise, small_vae
from torch import nn

from export.graphs.fusion import ProductConvolution, by_position, fold_batch_norm, merge_affine


def largest_relative_error(values: torch.Tensor, reference: torch.Tensor) -> float:
    return float((values - reference).abs().max() / reference.std())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        lambda bias: nn.Conv2d(3, 7, 3, stride=2, padding=1, bias=bias),
        lambda bias: nn.ConvTranspose2d(3, 7, 3, stride=2, padding=1, output_padding=1, bias=bias),
    ],
)
@torch.no_grad()
def test_fold_keeps_the_function(kind: Callable[[bool], nn.Module], bias: bool, affine: bool) -> None:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(7, affine=affine)
    randomise(norm)
    block = nn.Sequential(kind(bias), norm, nn.LeakyReLU()).eval()
    images = torch.randn(4, 3, 16, 16)
    folded = fold_batch_norm(block)
    assert [type(part) for part in folded] == [type(block[0]), nn.LeakyReLU]
    assert largest_relative_error(folded(images), block(images)) < 2e-6
    assert largest_relative_error(folded.double()(images.double()), block.double()(images.double())) < 1e-6


@torch.no_grad()
def test_fold_of_a_whole_vae_keeps_the_function_and_the_original() -> None:
    model = small_vae()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert sum(isinstance(part, nn.BatchNorm2d) for part in model.modules()) == 10
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    images, latents = torch.rand(5, 3, 64, 64), torch.randn(5, 16)
    for values, reference in zip(folded.encoder(images), model.encoder(images), strict=True):
        assert largest_relative_error(values, reference) < 1e-4
    assert float((folded.decoder(latents) - model.decoder(latents)).abs().max()) < 1e-5


@torch.no_grad()
def test_layers_without_activation_are_one_matrix() -> None:
    torch.manual_seed(2)
    up = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
    layers = nn.Sequential(nn.Linear(5, 24), nn.Unflatten(1, (6, 2, 2)), up, nn.BatchNorm2d(4)).eval()
    randomise(layers)
    merged = merge_affine(layers, 5)
    latents = torch.randn(7, 5)
    assert isinstance(merged, nn.Linear)
    assert merged.weight.dtype == torch.float32
    assert largest_relative_error(merged(latents), layers(latents).flatten(1)) < 2e-6
    assert layers[0].weight.dtype == torch.float32  # the original is as it was


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("side", "kernel_size", "stride"), [(4, 3, 2), (4, 4, 2), (8, 3, 2), (2, 3, 2), (5, 3, 1)])
@torch.no_grad()
def test_convolution_as_product(side: int, kernel_size: int, stride: int, bias: bool) -> None:
    torch.manual_seed(3)
    layer = nn.Conv2d(6, 7, kernel_size, stride=stride, padding=1, bias=bias)
    images = torch.randn(3, 6, side, side)
    values = ProductConvolution(layer, side)(images)  # (N, P, O)
    assert largest_relative_error(values.transpose(1, 2), layer(images).flatten(2)) < 3e-6


@torch.no_grad()
def test_linear_layer_by_position() -> None:
    torch.manual_seed(4)
    layer = nn.Linear(6 * 4, 5)
    features = torch.randn(3, 6, 4)
    turned = by_position(layer, 6)
    assert largest_relative_error(turned(features.transpose(1, 2).flatten(1)), layer(features.flatten(1))) < 2e-6
