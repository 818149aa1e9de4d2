import pytest
import torch
from torch import Tensor, nn

from trainer.hardware.conv_as_matmul import use_matmul


def layer(transposed: bool, kernel: int) -> nn.Sequential:
    torch.manual_seed(0)
    convolution: nn.Module = nn.Conv2d(24, 40, kernel, stride=2, padding=1)
    if transposed:
        convolution = nn.ConvTranspose2d(24, 40, kernel, stride=2, padding=1, output_padding=4 - kernel)
    return nn.Sequential(convolution).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def results(module: nn.Module, images: Tensor, slope: Tensor | None, autocast: bool) -> list[Tensor]:
    """Output, and the gradients of input, weight and bias."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(images)
    output.backward(torch.ones_like(output) if slope is None else slope.to(output.dtype))
    return [output.float(), *(t.grad.float() for t in (images, *module.parameters()) if t.grad is not None)]


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("side", [4, 8, 32])
def test_products_are_the_convolution(transposed: bool, kernel: int, side: int) -> None:
    images = torch.randn(5, 24, side, side).to(memory_format=torch.channels_last)
    plain, product = layer(transposed, kernel), layer(transposed, kernel)
    use_matmul(product)
    slope = torch.randn_like(plain(images))
    expected = results(plain, images, slope, autocast=False)
    found = results(product, images, slope, autocast=True)
    assert len(found) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() < 0.01 * theirs.norm()  # bfloat16 has 8 bits
    assert product.state_dict().keys() == plain.state_dict().keys()


def test_outside_of_bf16_training_nothing_changes() -> None:
    images = torch.randn(2, 24, 4, 4)
    plain, product = layer(False, 3), layer(False, 3)
    use_matmul(product)
    assert torch.equal(plain(images), product(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(images), product.eval()(images))


def test_small_images_are_not_convolved() -> None:
    """What the room is for: no convolution kernel runs, forwards or backwards."""
    product = layer(False, 3)
    use_matmul(product)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        results(product, torch.randn(2, 24, 4, 4), None, autocast=True)
    assert not [event.key for event in profile.key_averages() if "convolution" in event.key]
