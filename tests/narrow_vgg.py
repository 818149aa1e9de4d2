"""VGG19 with few channels: random features of the same depth and scale, in a fraction of the time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trainer.loss import vgg

NARROWER = 16


@contextmanager
def narrow_vgg() -> Iterator[None]:
    """Makes every VGG19 that is built meanwhile as much narrower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "_BLOCKS", [(depth, channels // NARROWER) for depth, channels in vgg._BLOCKS])
        yield
