import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.data.loader import Batch, BatchLoader, _generator
from trainer.hardware.device import Placement
from trainer.hardware.distributed import Processes

CPU = Placement.of("cpu", "fp32")


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(a[:3], b[:3], strict=True)) and a.total == b.total


def test_every_image_comes_once_an_epoch(small: TrainConfig, data: FaceData) -> None:
    feed = BatchLoader(replace(small, batch_size=48, flip=False), data, CPU)
    assert (feed.steps_per_epoch, feed.num_steps) == (4, 12)
    batches = [feed.batch(step) for step in range(4)]
    assert [len(batch.images) for batch in batches] == [48, 48, 48, 16]
    seen = torch.cat([batch.images for batch in batches])
    packed = torch.from_numpy(data.images[data.rows("train")]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(seen.flatten(1).sum(1).sort().values, packed.flatten(1).sum(1).sort().values)
    assert not torch.equal(batches[0].images, feed.batch(4).images)  # another order in the next epoch


def test_batches_have_the_labels_of_their_images(small: TrainConfig, data: FaceData) -> None:
    batch = BatchLoader(replace(small, flip=False), data, CPU).batch(2)
    packed = torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2).float() / 255
    for image, labels in zip(batch.images, batch.labels, strict=True):
        (row,) = np.flatnonzero((packed == image).all((1, 2, 3)).numpy())
        assert np.array_equal(labels.numpy() == 1, data.index.labels[row])


def test_flips_mirror_about_half_of_the_images(small: TrainConfig, data: FaceData) -> None:
    ours, theirs = (BatchLoader(replace(small, flip=flip), data, CPU).batch(0).images for flip in (True, False))
    mirrored = [torch.equal(a, b.flip(-1)) and not torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert all(flip or torch.equal(a, b) for flip, a, b in zip(mirrored, ours, theirs, strict=True))
    assert 8 <= sum(mirrored) <= 24


def test_streamed_batches_are_those_made_on_the_spot(small: TrainConfig, data: FaceData) -> None:
    feed = BatchLoader(small, data, CPU)
    with closing(feed.stream(3, 9)) as stream:
        streamed = list(stream)
    assert len(streamed) == 6
    assert all(same(batch, feed.batch(step)) for step, batch in enumerate(streamed, start=3))


@pytest.mark.parametrize("size", [2, 3])
def test_shards_make_up_the_whole_batch(small: TrainConfig, data: FaceData, size: int) -> None:
    config = replace(small, batch_size=53)  # the last batch has one image
    whole = BatchLoader(config, data, CPU)
    for step in (0, 3):
        parts = [BatchLoader(config, data, CPU, Processes(rank, size)).batch(step) for rank in range(size)]
        batch = whole.batch(step)
        assert {part.total for part in parts} == {len(batch.images)}
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, batch.images[rank::size])
            assert torch.equal(part.noise, batch.noise[rank::size])
            assert len(part.images) == len(range(rank, len(batch.images), size))


def loaders() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


def test_the_thread_ends_with_its_stream(small: TrainConfig, data: FaceData) -> None:
    with closing(BatchLoader(small, data, CPU).stream(0, 15)) as stream:
        next(stream)
        assert loaders() == 1
    assert loaders() == 0


def test_an_error_in_the_thread_is_raised_where_the_batches_are_used(small: TrainConfig, data: FaceData) -> None:
    torn = replace(data, images=data.images[:30])
    with pytest.raises(IndexError), closing(BatchLoader(small, torn, CPU).stream(0, 15)) as stream:
        list(stream)
    assert loaders() == 0


def test_no_two_purposes_share_their_random_numbers() -> None:
    drawn = {_generator(0, purpose, number).bytes(8) for purpose in range(3) for number in range(3)}
    assert len(drawn) == 9


def test_a_sample_is_drawn_from_all_training_images_by_the_seed(small: TrainConfig, data: FaceData) -> None:
    first, again, other = (BatchLoader(replace(small, seed=seed), data, CPU).sample(64) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(set(first) & set(data.rows("train"))) == 64
    assert first.max() > 100  # of the rows 0 to 159
    assert np.array_equal(BatchLoader(small, data, CPU).sample(1000), data.rows("train"))
