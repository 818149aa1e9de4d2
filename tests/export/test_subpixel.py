from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from export.graphs.subpixel import (
    convolution_in_phases,
    convolution_of_phases,
    enlarged_in_phases,
    join_phases,
    transposed_in_phases,
)

SHAPES = [(5, 7), (1, 1), (2, 3)]


def transposed(kernel_size: int, bias: bool = True) -> nn.ConvTranspose2d:
    torch.manual_seed(0)
    return nn.ConvTranspose2d(3, 5, kernel_size, stride=2, padding=1, output_padding=4 - kernel_size, bias=bias)


def convolution(padding_mode: Literal["zeros", "replicate"] = "zeros", bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(5, 3, 3, padding=1, padding_mode=padding_mode, bias=bias)


def enlarged(layer: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), layer)


def straddling(image: Tensor) -> Tensor:
    """What is inside the image's edges, of cells that straddle, shuffled."""
    return nn.functional.pixel_shuffle(image, 2)[:, :, 1:-1, 1:-1]


def check(values: Tensor, reference: Tensor) -> None:
    assert values.shape == reference.shape
    assert values.dtype == torch.float32
    assert float((values - reference).abs().max()) < 2e-6 * float(reference.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 4])
@torch.no_grad()
def test_transposed_convolution(kernel_size: int, bias: bool, shape: tuple[int, int]) -> None:
    layer = transposed(kernel_size, bias)
    features = torch.randn(2, 3, *shape)
    check(nn.functional.pixel_shuffle(transposed_in_phases(layer)(features), 2), layer(features))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_enlarging_convolution(bias: bool, shape: tuple[int, int]) -> None:
    layer = convolution("replicate", bias)
    features = torch.randn(2, 5, *shape)
    expected = enlarged(layer)(features)
    check(straddling(enlarged_in_phases(layer)(features)), expected)
    joined = join_phases(enlarged_in_phases(layer, phases_first=True)(features), straddling=True)
    check(joined.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_convolution_of_an_image_with_even_sides(bias: bool, shape: tuple[int, int]) -> None:
    layer = convolution(bias=bias)
    features = torch.randn(2, 5, 2 * shape[0], 2 * shape[1])
    joined = join_phases(convolution_in_phases(layer)(features), straddling=False)
    check(joined.permute(0, 3, 1, 2), layer(features))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_convolution_of_an_image_in_cells(bias: bool, shape: tuple[int, int]) -> None:
    layer = convolution(bias=bias)
    cells = torch.randn(2, 4 * 5, *shape)
    joined = join_phases(convolution_of_phases(layer)(cells), straddling=True)
    check(joined.permute(0, 3, 1, 2), layer(nn.functional.pixel_shuffle(cells, 2)))


@torch.no_grad()
def test_an_activation_may_come_before_the_shuffle() -> None:
    layer, activation, last = transposed(4), nn.LeakyReLU(), convolution()
    features = torch.randn(2, 3, 6, 6)
    rewritten = nn.Sequential(transposed_in_phases(layer), activation, convolution_of_phases(last))
    expected = nn.Sequential(layer, activation, last)(features)
    check(join_phases(rewritten(features), straddling=True).permute(0, 3, 1, 2), expected)
