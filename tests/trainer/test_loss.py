import math

import pytest
import torch

from trainer.config import RANDOM, TrainConfig
from trainer.loss.perceptual import PerceptualLoss
from trainer.loss.vae_loss import VAELoss, kl_divergence
from trainer.loss.vgg import IMAGENET_MEAN, IMAGENET_STD, load_backbone
from trainer.model import Output


def output_of(images: torch.Tensor, mu: torch.Tensor) -> Output:
    """What a VAE with a posterior of unit variance returns."""
    return Output(images, mu, torch.zeros_like(mu), mu)


def test_kl_of_a_known_gaussian() -> None:
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - ln s, worked by hand for m = 3, s = 2."""
    kl = kl_divergence(torch.tensor([[3.0, 0.0]]), torch.tensor([[math.log(4.0), 0.0]]))
    assert kl[0, 0].item() == pytest.approx((9 + 4 - 1) / 2 - math.log(2), rel=1e-6)
    assert kl[0, 1].item() == 0


def test_the_loss_is_the_seed_documents() -> None:
    """0.5 * rec_weight * (pixel + features) + kl_weight * KL, with hand-made tensors."""
    config = TrainConfig(taps=(), rec_weight=3.0, kl_weight=0.25)
    images = torch.zeros(2, 3, 4, 4)
    output = output_of(torch.full((2, 3, 4, 4), 0.5), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    terms = VAELoss(config, None)(images, output)
    assert terms.pixel.item() == pytest.approx(0.25)
    assert terms.kl.item() == pytest.approx(0.25)  # half a nat for the first image, none for the second
    assert terms.total.item() == pytest.approx(0.5 * 3 * 0.25 + 0.25 * 0.25)


def test_the_kl_weight_warms_up() -> None:
    config = TrainConfig(taps=(), kl_weight=1.0, kl_warmup=0.5)
    images = torch.zeros(1, 3, 4, 4)
    output = output_of(images, torch.tensor([[2.0]]))
    loss = VAELoss(config, None)
    totals = [loss(images, output, progress=progress).total.item() for progress in (0.0, 0.25, 0.5, 1.0)]
    assert totals == pytest.approx([0, 1, 2, 2])


def perceptual(taps: tuple[str, ...] = ("relu1_1", "relu2_1")) -> PerceptualLoss:
    torch.manual_seed(0)
    return PerceptualLoss(load_backbone(taps, RANDOM, seed=3), torch.device("cpu"), torch.float32)


def test_feature_terms_join_the_loss_on_a_share_of_the_batch() -> None:
    config = TrainConfig(taps=("relu1_1", "relu2_1"), feature_weight=2.0, feature_share=0.5, kl_weight=0.0)
    compare = perceptual()
    images, ours = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    terms = VAELoss(config, compare)(images, output_of(ours, torch.zeros(4, 2)))
    _, expected = compare(ours[:2], images[:2])
    assert list(terms.features) == ["relu1_1", "relu2_1"]
    assert terms.total.item() == pytest.approx(0.5 * (terms.pixel.item() + 2 * expected.sum().item()), rel=1e-6)


def differentiable(compare: PerceptualLoss, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The terms as autograd's own expression."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    terms = []
    for position, scale in zip(compare.backbone.taps.values(), compare.scales.values(), strict=True):
        layers = compare.backbone.layers[: position + 1]
        terms.append((layers((ours - mean) / std) - layers((theirs - mean) / std)).square().mean() * scale**2)
    return torch.stack(terms)


@pytest.mark.parametrize("taps", [("relu1_1", "relu2_1"), ("relu1_2", "relu3_1"), ("relu2_2",)])
@pytest.mark.parametrize("chunk_images", [2, 100])
def test_terms_and_gradient_are_those_of_mean_squared_distances(taps: tuple[str, ...], chunk_images: int) -> None:
    compare = perceptual(taps)
    compare.chunk_images = chunk_images
    compare.normalise(torch.rand(5, 3, 32, 32))
    images, ours = torch.rand(7, 3, 32, 32), torch.rand(7, 3, 32, 32, requires_grad=True)
    plain = differentiable(compare, ours, images)
    (expected,) = torch.autograd.grad(3 * plain.sum(), ours)
    total, terms = compare(ours, images)
    (gradient,) = torch.autograd.grad(3 * total, ours)
    assert torch.allclose(terms, plain, rtol=1e-4)
    assert total.item() == pytest.approx(terms.sum().item())
    # Rounding may put single activations on the other side of a ReLU: hence the norm, not each value.
    assert (gradient - expected).norm() < 1e-2 * expected.norm()


def test_normalised_activations_have_a_mean_of_one() -> None:
    compare = perceptual()
    images = torch.rand(5, 3, 32, 32)
    raw = differentiable(compare, images, torch.zeros_like(images))
    compare.normalise(images)
    scaled = differentiable(compare, images, torch.zeros_like(images))
    features = [compare.backbone.layers[: depth + 1] for depth in compare.backbone.taps.values()]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for layers, scale in zip(features, compare.scales.values(), strict=True):
        assert layers((images - mean) / std).mean().item() * scale == pytest.approx(1, rel=1e-3)
    assert (scaled / raw).tolist() == pytest.approx([scale**2 for scale in compare.scales.values()], rel=1e-5)


def test_the_attribute_term_is_a_mean_cross_entropy() -> None:
    config = TrainConfig(taps=(), kl_weight=0.0, attribute_weight=0.5)
    images = torch.rand(2, 3, 4, 4)
    logits, labels = torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    terms = VAELoss(config, None)(images, output_of(images, torch.zeros(2, 3)), logits, labels)
    expected = sum(math.log(1 + math.exp(-sign)) for sign in (0.0, 2.0, -1.0, 0.0)) / 4
    assert terms.named()["attributes"] == pytest.approx(expected)
    assert terms.total.item() == pytest.approx(0.5 * expected)
