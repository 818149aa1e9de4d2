"""The contract between what a model was trained on and what it is given: a square around an aligned face."""

from dataclasses import dataclass

Landmarks = tuple[tuple[float, float], ...]
"""Five points (x, y), pixels from the upper left corner: the eyes, the nose, the corners of the mouth; of each pair the
one further left in the picture comes first."""

CELEBA_SOURCE = (178, 218)
"""Width and height of CelebA's aligned pictures, pixels."""
CELEBA_LANDMARKS: Landmarks = ((70.1, 112.4), (108.6, 111.5), (88.6, 135.9), (73.2, 153.6), (105.3, 152.7))
"""Where the landmarks lie in them: means over 118 pictures, as CenterFace finds them."""

MAX_ASPECT = 4
"""Longer side over shorter one. Beyond, the middle of a picture is no guess at where its face is."""


class FramingError(ValueError):
    """Raise when a picture can't be brought to the frame; the message goes after the picture's name."""


class TooSmallError(FramingError):
    """Raise when a picture has fewer pixels than the frame keeps."""


class TooLongError(FramingError):
    """Raise when a picture is so far from square that its middle says nothing about where the face is."""


@dataclass(frozen=True)
class Frame:
    """What a model was trained on.

    A picture is brought to the frame by its size alone:

    - `size` x `size`: it is framed already, and is taken as it is.
    - `source`: the centred square of side `crop` is cut out and resized to `size`.
    - any other size: as if it were scaled, with its proportions, to cover `source`, and then cut: of a picture that is
      not aligned, the scaled centre is the best guess.
    """

    size: int  # side S of the model's images, pixels
    # Side of the square that is cut out of a picture of the size `source`, pixels. None: pictures are cropped already;
    # the shorter side is resized to `size`, and the centred square of that is taken.
    crop: int | None = None
    # Width and height of the pictures that the model was trained on, pixels. None: not known, as in bundles of older
    # versions; `crop` is then cut out of pictures of any size.
    source: tuple[int, int] | None = None
    landmarks: Landmarks | None = None  # of an aligned face in a picture of the size `source`; None: not known

    @classmethod
    def of(cls, size: int, crop: int | None, source: tuple[int, int]) -> "Frame":
        """The frame of a training: landmarks are known of CelebA's source, and without a crop there is no source."""
        if not crop:
            return cls(size)
        return cls(size, crop, source, CELEBA_LANDMARKS if source == CELEBA_SOURCE else None)

    def is_framed(self, width: int, height: int) -> bool:
        """Whether a picture has the size of the model's images."""
        return (width, height) == (self.size, self.size)

    def brings(self, width: int, height: int) -> bool:
        """Whether a picture has another size than the frame, and so has to be brought to it."""
        return not self.is_framed(width, height) and self.source is not None and (width, height) != self.source

    def side(self, width: int, height: int) -> int | None:
        """Side of the centred square that is cut out of a picture before it is resized, pixels; None: no such cut."""
        if not self.crop or self.is_framed(width, height):
            return None
        if self.source is None:
            return self.crop
        return round(self.crop * min(width / self.source[0], height / self.source[1]))

    def check(self, width: int, height: int) -> None:
        """Refuses a picture by its width and height, pixels.

        Raises:
            TooLongError: it is too far from square.
            TooSmallError: it is smaller than the crop, and not framed already.
        """
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise TooLongError(f"is {width}x{height} pixels, too far from square")
        if self.crop and min(width, height) < self.crop and not self.is_framed(width, height):
            raise TooSmallError(f"is {width}x{height} pixels, smaller than the crop of {self.crop}")
