"""What can be wrong with a user's input. Every message names the thing, its value and the mend."""


class TrainerError(Exception):
    """The root: the command line shows its message alone, without a traceback."""

    exit_code = 2


class ConfigError(TrainerError):
    """A configuration that cannot be run. The message names the flag."""


class DataError(TrainerError):
    """A data set that cannot be used. The message names the file, the line or the image."""


class RunError(TrainerError):
    """A run folder that cannot be used. The message names the file."""


class NonFiniteLossError(TrainerError):
    """The loss is not a number. The message gives the step, the terms and what to change."""

    exit_code = 1


class InterruptedRunError(TrainerError):
    """Training stopped on a signal, with a checkpoint written."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
