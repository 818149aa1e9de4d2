"""Who is drawn: the attributes of a procedural face, and everything else that tells one face from another."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ATTRIBUTES: tuple[str, ...] = (
    "Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Bushy_Eyebrows", "Eyeglasses", "Gray_Hair", "Male",
    "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Pale_Skin", "Rosy_Cheeks", "Smiling", "Wearing_Hat",
    "Wearing_Lipstick",
)  # fmt: skip
"""The attributes that are drawn, named as in CelebA and in the order of its header."""

HAIR_COLOURS: tuple[str, ...] = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")


def _between(low: float, high: float) -> Any:
    """A field drawn uniformly from [low, high)."""
    return field(metadata={"draw": lambda rng: low + (high - low) * rng.random()})


def _one_of(count: int) -> Any:
    """A field drawn from 0 ... count - 1."""
    return field(metadata={"draw": lambda rng: int(rng.integers(count))})


@dataclass(frozen=True)
class Face:
    """A face to draw: which attributes hold, and continuous traits, independent of them and of each other.

    Traits named `*_degree` say where in the range of its attribute's present state a face lies, 0 ... 1:
    there is a wide gap between the range with the attribute and the one without it. Changing `labels` alone
    therefore changes that attribute and nothing else.
    """

    labels: frozenset[str]
    """The members of `ATTRIBUTES` that hold."""

    roll: float = _between(-6, 6)  # degrees
    yaw: float = _between(-1, 1)  # features and outline shift against each other by a few pixels
    shift_x: float = _between(-3, 3)  # pixels
    shift_y: float = _between(-3, 3)  # pixels
    scale: float = _between(0.94, 1.06)

    light_side: float = _between(-1, 1)  # -1 from the left, 1 from the right
    light_strength: float = _between(0.08, 0.24)
    exposure: float = _between(0.9, 1.08)
    warmth: float = _between(-0.04, 0.04)  # gain on red, and its opposite on blue

    skin_tone: float = _between(0, 1)
    head_width: float = _between(0.94, 1.06)
    head_length: float = _between(0.96, 1.05)
    jaw_degree: float = _between(0, 1)

    eye_size: float = _between(0.92, 1.1)
    eye_spacing: float = _between(0.95, 1.05)
    eye_opening_degree: float = _between(0, 1)
    eye_colour: float = _between(0, 1)
    brow_degree: float = _between(0, 1)
    brow_arch: float = _between(2, 6)  # pixels
    brow_raise: float = _between(-1.5, 1.5)  # pixels
    nose_width: float = _between(0.85, 1.2)
    nose_length: float = _between(0.94, 1.08)
    mouth_width: float = _between(0.92, 1.08)
    lip_fullness: float = _between(0.85, 1.2)
    lip_colour: float = _between(0, 1)
    smile_degree: float = _between(0, 1)
    mouth_opening_degree: float = _between(0, 1)
    cheek_degree: float = _between(0, 1)

    hair_shade: float = _between(0, 1)
    hair_length: float = _between(0, 1)
    hair_volume: float = _between(0, 1)
    hair_parting: float = _between(-1, 1)
    hair_phase: float = _between(0, 2 * np.pi)  # of the strands
    bangs_degree: float = _between(0, 1)
    beard_degree: float = _between(0, 1)
    mustache_degree: float = _between(0, 1)

    glasses_shape: int = _one_of(3)  # round, rectangular, aviator
    glasses_colour: int = _one_of(4)  # black, brown, red, metal
    glasses_size: float = _between(0.95, 1.08)
    glasses_tint: float = _between(0, 1)
    hat_style: int = _one_of(3)  # beanie, cap, brimmed
    hat_hue: float = _between(0, 1)
    hat_value: float = _between(0.35, 0.85)
    clothes_hue: float = _between(0, 1)
    clothes_value: float = _between(0.25, 0.9)

    background_hue: float = _between(0, 1)
    background_hue_shift: float = _between(-0.15, 0.15)
    background_value: float = _between(0.25, 0.9)
    background_slope: float = _between(-0.25, 0.25)  # value from left to right
    background_blob_x: float = _between(0, 1)
    background_blob_y: float = _between(0, 0.7)

    blur: float = _between(0, 0.6)  # pixels
    noise: float = _between(1, 3)  # standard deviation in 8-bit levels
    noise_seed: int = _one_of(2**32)

    def has(self, attribute: str) -> bool:
        """Whether one of `ATTRIBUTES` holds."""
        return attribute in self.labels


def sample_face(seed: int, index: int) -> Face:
    """Draws face number `index` of the endless sequence that `seed` names; depends on the two alone."""
    rng = np.random.default_rng([seed, index])
    labels = _sample_labels(rng)
    traits = {trait.name: trait.metadata["draw"](rng) for trait in dataclasses.fields(Face) if trait.metadata}
    return Face(labels=labels, **traits)


def _sample_labels(rng: np.random.Generator) -> frozenset[str]:
    """Draws the attributes, each independently of the others except for what nature excludes."""

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    # Every draw is made, used or not, so that a change to one rule leaves the other attributes' draws alone.
    male = happens(0.5)
    bald = happens(0.36) and male
    hair_colour = HAIR_COLOURS[int(rng.integers(len(HAIR_COLOURS)))]
    drawn = {
        "Male": male,
        "Bald": bald,
        "Bangs": happens(0.36) and not bald,
        "Bushy_Eyebrows": happens(0.35),
        "Eyeglasses": happens(0.5),
        "Mouth_Slightly_Open": happens(0.45),
        "Mustache": happens(0.45) and male,
        "Narrow_Eyes": happens(0.3),
        "No_Beard": not (happens(0.45) and male),
        "Pale_Skin": happens(0.25),
        "Rosy_Cheeks": happens(0.3),
        "Smiling": happens(0.5),
        "Wearing_Hat": happens(0.3) and not bald,
        "Wearing_Lipstick": happens(0.5) and not male,
        hair_colour: not bald,
    }
    return frozenset(name for name, holds in drawn.items() if holds)
