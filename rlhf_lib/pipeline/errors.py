"""Errors that the user can mend; the command line shows their message alone. Light: imports nothing."""


class UserError(Exception):
    """Something asked for cannot be done; the message says what, where, and what to do instead."""


class SettingsError(UserError, ValueError):
    """A setting that does not exist or cannot be."""


class MissingInputError(UserError, FileNotFoundError):
    """A stage needs what an earlier stage makes, and it is not there."""


class InputError(UserError, ValueError):
    """A file or folder that a stage reads is damaged, of another version, or holds what cannot be used."""


class StoppedError(UserError):
    """The user stopped the run; the message says how to go on."""


class OccupiedError(UserError):
    """The output folder holds something that would be overwritten, or another run is writing to it."""


class TrainingError(Exception):
    """Training went wrong by itself; the message says in which stage, after which step, and what was seen."""
