"""The errors of the export: what was given is wrong, or the engines are."""


class InputError(RuntimeError):
    """A flag or a folder that cannot be used. The message names it, its value and the mend."""


class ParityError(RuntimeError):
    """Engines further from PyTorch than tolerated. The message names stage, figure and tolerance."""
