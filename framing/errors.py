"""What keeps a picture from being framed."""


class FramingError(ValueError):
    """Raise when a picture can't be brought to the frame; the message goes after the picture's name."""


class TooSmallError(FramingError):
    """Raise when a picture has fewer pixels than the frame keeps."""


class TooLongError(FramingError):
    """Raise when a picture is so far from square that its middle says nothing about where the face is."""


class AlignmentError(FramingError):
    """Raise when no face can be found, or not one that can be aligned."""
