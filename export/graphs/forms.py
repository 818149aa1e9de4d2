"""The forms in which encoder and decoder can be built: graphs that compute the same function in other steps.

- plain: as trained, batch norm folded.
- product (encoder): the last convolution, of a tiny image, as a matrix product.
- tail (decoder): all before the first activation as one matrix, and the last layer on half the side.
- phases (decoder): as tail, and the enlarging layer before the last one in phases too (nearest: all of them), so that
  its activation is fused with a convolution.

Which one is fastest depends on network, runtime, CPU and batch size, so each build measures (`engines.contest`).
benchmarks/reports/2026-11-24-graph-forms.md has what each gained, and what was tried besides.
"""

from typing import cast

import torch
from torch import Tensor, nn

from export.graphs.fusion import ProductConvolution, by_position, fold_batch_norm, merge_affine
from export.graphs.names import PLAIN, DecoderForm, EncoderForm
from export.graphs.subpixel import (
    convolution_in_phases,
    convolution_of_phases,
    enlarged_in_phases,
    join_phases,
    transposed_in_phases,
)
from trainer.model import Decoder, Encoder


class EncoderGraph(nn.Module):
    """Images, uint8 (N, S, S, 3) RGB, to mu and log_var, float32 (N, D) each."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes."""
        # Cast before anything else, and in the decoder after everything: TensorRT takes uint8 nowhere in between.
        mu, log_var = self.encoder(images.float().permute(0, 3, 1, 2) / 255)
        return mu, log_var


class DecoderGraph(nn.Module):
    """Latents, float32 (N, D), to images, uint8 (N, S, S, 3) RGB, rounded half to even."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes."""
        return _levels(self.decoder(latents)).permute(0, 2, 3, 1).to(torch.uint8)


def encoder_graph(encoder: Encoder, form: EncoderForm) -> nn.Module:
    """The encoder in one of its forms, to be traced; `encoder`, in evaluation mode, is left as it is."""
    folded = fold_batch_norm(encoder)
    return EncoderGraph(folded if form == PLAIN else _ProductEncoder(folded))


def decoder_graph(decoder: Decoder, form: DecoderForm) -> nn.Module:
    """The decoder in one of its forms, to be traced; `decoder`, in evaluation mode, is left as it is."""
    folded = fold_batch_norm(decoder)
    if form == PLAIN:
        return DecoderGraph(folded)
    build = _nearest if isinstance(folded.blocks[-1], nn.Upsample) else _transposed
    return build(folded, form == "phases")


class _ProductEncoder(nn.Module):
    """The encoder with its last convolution as a matrix product. Shapes: h side of that one's images."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        *blocks, last = _blocks(encoder.blocks)
        convolution, self.activation = cast(nn.Conv2d, last[0]), last[1]
        channels = convolution.out_channels
        self.blocks = nn.Sequential(*blocks)
        side = round((encoder.mu.in_features / channels) ** 0.5)  # of its result; that of its images is twice as long
        self.convolution = ProductConvolution(convolution, 2 * side)
        self.mu = by_position(encoder.mu, channels)
        self.log_var = by_position(encoder.log_var, channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, S, S) in [0, 1] to mu and log_var, (N, D) each."""
        features = self.activation(self.convolution(self.blocks(images))).flatten(1)
        return self.mu(features), self.log_var(features)


class _RewrittenDecoder(nn.Module):
    """Latents, float32 (N, D), to images, uint8 (N, S, S, 3) RGB, rounded half to even.

    Args:
        decoder: Its first layers become one matrix.
        middle: From the first activation on, to the last cells: (N, C, h, h) to (N, 12, h', h').
        straddling: Whether those cells straddle.
    """

    def __init__(self, decoder: Decoder, middle: nn.Sequential, straddling: bool) -> None:
        super().__init__()
        first = _blocks(decoder.blocks)[0]
        start = nn.Sequential(decoder.linear, nn.Unflatten(1, decoder.shape), first[:-1])
        latent_dim = decoder.linear.in_features
        with torch.no_grad():
            self.shape = tuple(start(torch.zeros(1, latent_dim)).shape[1:])
        self.start = merge_affine(start, latent_dim)
        self.first_activation = first[-1]
        self.middle = middle
        self.straddling = straddling

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes."""
        features = self.first_activation(self.start(latents)).reshape(-1, *self.shape)
        return join_phases(_levels(torch.sigmoid(self.middle(features))), self.straddling).to(torch.uint8)


def _transposed(decoder: Decoder, phases: bool) -> _RewrittenDecoder:
    *middle, last = _blocks(decoder.blocks)[1:]
    enlarging, activation = cast(nn.ConvTranspose2d, last[0]), last[1]
    if phases:
        end = nn.Sequential(transposed_in_phases(enlarging), activation, convolution_of_phases(decoder.to_rgb))
    else:
        end = nn.Sequential(enlarging, activation, convolution_in_phases(decoder.to_rgb))
    return _RewrittenDecoder(decoder, nn.Sequential(*middle, *end), straddling=phases)


def _nearest(decoder: Decoder, phases: bool) -> _RewrittenDecoder:
    middle = [_EnlargedBlock(block) if phases else block for block in _blocks(decoder.blocks)[1:-1]]
    last = enlarged_in_phases(decoder.to_rgb, phases_first=True)
    return _RewrittenDecoder(decoder, nn.Sequential(*middle, last), straddling=True)


class _EnlargedBlock(nn.Module):
    """Enlarging, convolution and activation, (N, I, h, h) to (N, O, 2h, 2h), with the shuffle last."""

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        _, convolution, self.activation = block
        self.convolution = enlarged_in_phases(cast(nn.Conv2d, convolution))

    def forward(self, features: Tensor) -> Tensor:
        cells = self.activation(self.convolution(features))
        return nn.functional.pixel_shuffle(cells, 2)[:, :, 1:-1, 1:-1]


def _blocks(blocks: nn.Sequential) -> list[nn.Sequential]:
    return cast(list[nn.Sequential], list(blocks))


def _levels(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], of any shape, to 8-bit levels, whole numbers in float32."""
    return (pixels * 255).round().clamp(0, 255)
