"""What every backend must do with the tiny model's graphs, whose arithmetic is exact."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tiny_model import LATENT_DIM, images_of, latents_of, random_images

from engine.backends import Backend


def check_a_batch(backend: Backend, count: int) -> None:
    """Both graphs compute a batch of so many images."""
    images = random_images(count, seed=count)
    images.flags.writeable = False  # as arrays over the bytes of a message are
    mu, log_var = backend.encode(images)
    np.testing.assert_array_equal(mu, latents_of(images))
    np.testing.assert_array_equal(log_var, latents_of(images) / -2)
    np.testing.assert_array_equal(backend.decode(mu + 3.3), images_of(mu + 3.3))


def check_results_belong_to_the_caller(backend: Backend, count: int) -> None:
    """Later batches leave earlier results alone, and these may be written to."""
    first, second = random_images(count, seed=1), random_images(count, seed=2)
    mu, _ = backend.encode(first)
    images = backend.decode(mu)
    backend.decode(backend.encode(second)[0])
    np.testing.assert_array_equal(mu, latents_of(first))
    np.testing.assert_array_equal(images, first)
    mu += 1  # and may be written to


def check_parts_of_a_larger_buffer(backend: Backend, count: int) -> None:
    """Inputs may be parts of a buffer of so many images."""
    images = random_images(count, seed=3)
    np.testing.assert_array_equal(backend.encode(images[2:5])[0], latents_of(images[2:5]))
    np.testing.assert_array_equal(backend.encode(images[::2])[0], latents_of(images[::2]))


def check_batches_that_overlap(backend: Backend) -> None:
    """Edits of several threads at once are those of each alone."""
    assert backend.overlaps

    def work(seed: int) -> None:
        for turn in range(40):
            images = random_images(1 + (seed + turn) % 9, seed=100 * seed + turn)
            steps = np.full((len(images), LATENT_DIM), seed, np.float32)
            edited, mu = backend.edit(images, steps)
            np.testing.assert_array_equal(mu, latents_of(images))
            np.testing.assert_array_equal(edited, images_of(latents_of(images) + steps))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
