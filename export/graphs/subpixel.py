"""Enlarging convolutions, and those after them, computed on half the side: four phases of a pixel as channels.

An image of side 2h is held as (N, 4C, h, h): a cell holds the 2 x 2 pixels, its phases, of every channel. Aligned
cells c cover rows 2c and 2c + 1 (c from 0 to h - 1), straddling ones rows 2c - 1 and 2c (c from 0 to h: a first
and a last row and column hang over the edge). Columns likewise. Whatever is done to each value alone, such as an
activation, is the same before and after such a rearrangement, so runtimes can fuse it with the convolution. The layers
are those of `trainer.model.Decoder`; the parity gate would find a rewrite of any other.

Shapes: I and O channels in and out, k side of a kernel, p phases (row, column), d offsets between cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Taps = Sequence[tuple[int, int, int]]
"""Along one axis: (phase of the output, offset of the input that it reads, position in the kernel)."""

_TRANSPOSED: dict[int, tuple[Taps, tuple[int, int]]] = {
    # Row 2i + j of a transposed convolution of stride 2, padding 1 reads input i + d through tap 1 + j - 2d; offsets
    # are counted from the first input that is read, which the padding (before, after) makes i or i - 1.
    3: (((0, 0, 1), (1, 0, 2), (1, 1, 0)), (0, 1)),
    4: (((0, 0, 3), (0, 1, 1), (1, 1, 2), (1, 2, 0)), (1, 1)),
}
_ENLARGED: Taps = ((0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 0, 0), (1, 1, 1), (1, 1, 2))
_PADDED: Taps = tuple((phase, phase + tap, tap) for phase in (0, 1) for tap in range(3))


def transposed_in_phases(layer: nn.ConvTranspose2d) -> nn.Sequential:
    """A transposed convolution of kernel 3 or 4 and stride 2 that doubles the side, as one convolution.

    It takes (N, I, h, h) to aligned cells (N, 4 O, h, h), channels as `torch.pixel_shuffle` takes them.
    """
    taps, (before, after) = _TRANSPOSED[layer.kernel_size[0]]
    kernel = _spread(layer.weight.transpose(0, 1), taps)
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), _convolution(kernel, layer.bias))


def enlarged_in_phases(layer: nn.Conv2d, phases_first: bool = False) -> nn.Sequential:
    """Doubling the side by repetition and a 3x3 convolution with replicating padding, as one 2x2 convolution.

    With `phases_first` channels of the result have the order (p, p, O), and not that of `torch.pixel_shuffle`.

    Returns:
        (N, I, h, h) to straddling cells (N, 4 O, h + 1, h + 1).
    """
    kernel = _spread(layer.weight, _ENLARGED)
    return nn.Sequential(nn.ReplicationPad2d(1), _convolution(kernel, layer.bias, phases_first=phases_first))


def convolution_in_phases(layer: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution with zero padding, as a 4x4 convolution of stride 2: each position gives 2 x 2 pixels.

    It takes (N, I, 2h, 2h) to aligned cells (N, 4 O, h, h), channels in the order (p, p, O).
    """
    return _convolution(_spread(layer.weight, _PADDED), layer.bias, stride=2, padding=1, phases_first=True)


def convolution_of_phases(layer: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution with zero padding of an image in aligned cells, as one 2x2 convolution.

    Its cells straddle: rows 2c - 1 and 2c of the result need rows 2c - 2 to 2c + 1, which are two cells.

    Returns:
        Aligned cells (N, 4 I, h, h), channels as `torch.pixel_shuffle` takes them, to straddling cells
        (N, 4 O, h + 1, h + 1), channels in the order (p, p, O).
    """
    kernel = _spread(layer.weight, _PADDED)  # (O, p, p, I, 4, 4)
    cells = kernel.reshape(*kernel.shape[:4], 2, 2, 2, 2)  # (O, p, p, I, d, p, d, p)
    cells = cells.permute(0, 1, 2, 3, 5, 7, 4, 6).flatten(3, 5)  # (O, p, p, 4 I, d, d)
    return _convolution(cells, layer.bias, padding=1, phases_first=True)


def join_phases(cells: Tensor, straddling: bool) -> Tensor:
    """Cells (N, 4 C, h, w), channels in the order (p, p, C), to the image that they hold, (N, H, W, C).

    Height and width are 2h and 2w, or with straddling cells, whose overhanging pixels go, 2h - 2 and 2w - 2.
    """
    channels, height, width = map(int, cells.shape[1:])  # constants of the graph, in which only the batch varies
    # A cell's two pixels in one row, all their channels, stay together: fewer and longer pieces to move.
    rows = cells.reshape(-1, 2, channels // 2, height, width).permute(0, 3, 1, 4, 2)
    image = rows.reshape(-1, 2 * height, 2 * width, channels // 4)
    return image[:, 1:-1, 1:-1] if straddling else image


def _spread(weight: Tensor, taps: Taps) -> Tensor:
    """Kernels (O, I, k, k) to those of the phases, (O, p, p, I, d, d), in float64."""
    size = 1 + max(offset for _, offset, _ in taps)
    out_channels, in_channels = weight.shape[:2]
    kernel = torch.zeros(out_channels, 2, 2, in_channels, size, size, dtype=torch.float64)
    for row_phase, row_offset, row in taps:
        for column_phase, column_offset, column in taps:
            kernel[:, row_phase, column_phase, :, row_offset, column_offset] += weight.detach()[:, :, row, column]
    return kernel


def _convolution(
    kernel: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0, phases_first: bool = False
) -> nn.Conv2d:
    """The convolution with a kernel (O, p, p, I, d, d) and the bias (O) of the layer that it replaces."""
    values = torch.zeros(len(kernel)) if bias is None else bias.detach()
    if phases_first:
        kernel, values = kernel.permute(1, 2, 0, 3, 4, 5), values.repeat(4)
    else:
        values = values.repeat_interleave(4)
    weight = kernel.flatten(0, 2).float()
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(values.clone())
    return layer
