"""One client process: `client_worker.py TARGET SEED ROUNDS`. It checks every answer against its own images.

With ROUNDS 0 it goes on until the server is UNAVAILABLE. It ends with exit code 0 and the number of answers
on stdout, or with a traceback when an answer is wrong or of another status.
"""

import sys

import numpy as np
from tiny_model import images_of, latents_of, random_images, tiny_directions

from engine.client import Client, ClientError


def check_round(client: Client, count: int, seed: int) -> int:
    """Sends `count` images through every method; returns the number of answers."""
    images = random_images(count, seed)
    directions = tiny_directions()
    mu, log_var = client.encode(images)
    np.testing.assert_array_equal(mu, latents_of(images))
    np.testing.assert_array_equal(log_var, latents_of(images) / -2)
    np.testing.assert_array_equal(client.decode(mu), images)
    strength = float(seed % 7 - 3)
    expected = latents_of(images) + np.float32(strength) * directions["Smiling"]
    edited, latents = client.edit_both(images, {"Smiling": strength})
    np.testing.assert_array_equal(latents, expected)
    np.testing.assert_array_equal(edited, images_of(expected))
    np.testing.assert_array_equal(client.edit(mu, {"Smiling": strength}), images_of(expected))
    return 4


def main() -> None:
    target, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sizes = np.random.default_rng(seed)
    answers = turn = 0
    with Client(target, timeout=120, retries=0) as client:
        try:
            while not rounds or turn < rounds:
                answers += check_round(client, int(sizes.integers(1, 81)), 1000 * seed + turn)
                turn += 1
                if turn == 1:
                    print("started", flush=True)
        except ClientError as error:
            if rounds or error.status != "UNAVAILABLE":
                raise
            print(error.message, file=sys.stderr)
    print(answers)


if __name__ == "__main__":
    main()
