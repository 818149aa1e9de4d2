"""The colours of a face, before light, and arithmetic on colours."""

import colorsys
from dataclasses import dataclass

from trainer.faces.canvas import Colour
from trainer.faces.person import Face

# Each row of colours is a continuous scale. Rows of different attributes lie well apart.
_PALE = ((246, 226, 216), (240, 214, 201))
_SKIN = ((228, 178, 144), (204, 149, 112), (160, 108, 78), (114, 76, 56))
_HAIR = {
    "Black_Hair": ((20, 17, 18), (38, 33, 34)),
    "Brown_Hair": ((94, 58, 34), (130, 84, 50)),
    "Blond_Hair": ((212, 170, 98), (238, 206, 142)),
    "Gray_Hair": ((148, 150, 156), (194, 195, 199)),
}
_BALD = ((30, 24, 22), (96, 70, 52))  # brows and beard of a bald head
_IRIS = ((74, 46, 28), (98, 74, 40), (78, 104, 66), (74, 110, 150))
_LIPSTICK = ((196, 22, 44), (214, 40, 92), (150, 18, 52))
_LIGHT: Colour = (255, 247, 238)


@dataclass(frozen=True)
class Palette:
    """The colours of one face, before light."""

    skin: Colour
    shadow: Colour  # skin in its own shadow
    shine: Colour  # skin in full light
    blush: Colour
    hair: Colour
    beard: Colour  # and moustache
    brow: Colour
    iris: Colour
    lips: Colour


def palette_of(face: Face) -> Palette:
    """The colours that a face's attributes and traits ask for."""
    skin = along(_PALE if face.has("Pale_Skin") else _SKIN, face.skin_tone)
    hair = along(next((scale for name, scale in _HAIR.items() if face.has(name)), _BALD), face.hair_shade)
    if face.has("Wearing_Lipstick"):
        lips = along(_LIPSTICK, face.lip_colour)
    else:
        lips = mix(times(skin, (0.86, 0.68, 0.66)), times(skin, (0.8, 0.62, 0.58)), face.lip_colour)
    beard = _apart(times(hair, (0.88, 0.86, 0.86)), skin)
    return Palette(
        skin=skin,
        shadow=times(skin, (0.62, 0.52, 0.48)),
        shine=mix(skin, _LIGHT, 0.7),
        blush=mix(times(skin, (1.0, 0.5, 0.5)), (196, 52, 56), 1.05 - 0.8 * skin[0] / 255),
        hair=hair,
        beard=beard,
        brow=_apart(mix(beard, times(skin, (0.35, 0.27, 0.24)), 0.35), skin),
        iris=along(_IRIS, face.eye_colour),
        lips=lips,
    )


def _apart(hair: Colour, skin: Colour) -> Colour:
    """Hair on the face, darkened where its brightness is so near the skin's that it would not show."""
    ratio = sum(hair) / sum(skin)
    if 0.5 < ratio < 1.3:
        return times(hair, (0.5 / ratio, 0.5 / ratio, 0.5 / ratio))
    return hair


def between(low: float, high: float, share: float) -> float:
    """The number at `share` 0 ... 1 of the way from low to high."""
    return low + (high - low) * share


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour at `share` 0 ... 1 of the way from the first to the second."""
    rest = 1 - share
    red, green, blue = (rest * a + share * b for a, b in zip(first, second, strict=True))
    return red, green, blue


def times(colour: Colour, factor: Colour) -> Colour:
    """A colour with each channel multiplied."""
    return colour[0] * factor[0], colour[1] * factor[1], colour[2] * factor[2]


def along(scale: tuple[Colour, ...], position: float) -> Colour:
    """The colour at `position` 0 ... 1 along a row of colours."""
    place = position * (len(scale) - 1)
    first = min(int(place), len(scale) - 2)
    return mix(scale[first], scale[first + 1], place - first)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour by hue (cyclic, period 1), saturation and value 0 ... 1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return 255 * red, 255 * green, 255 * blue
