"""What a user is told, and the exit status that goes with it."""

FAULT, REFUSED, AGAIN, DIVERGED = 1, 2, 75, 76
"""Exit statuses beside 0: a defect or a broken machine; the user must mend something; the same command goes on (what
sysexits.h calls a temporary failure); training has left the finite numbers."""


class UserError(Exception):
    """Something the user can mend: a configuration key, a file, an argument.

    The message is one line that names the key or file, its value and what is allowed. The command line prints it
    without a traceback and exits with `status`; anything else that escapes is a defect of ours and keeps its
    traceback.
    """

    status = REFUSED


class FaultError(UserError):
    """One line like any other, of something that is not the user's to mend."""

    status = FAULT


class AgreedError(UserError):
    """A `UserError` that every rank of a job has raised at the same place; it names the rank that met it."""


class DivergedError(AgreedError):
    """Training has left the finite numbers, which all ranks see at the same step."""

    status = DIVERGED


class StoppedError(AgreedError):
    """The run was asked to stop and has saved what it had; all ranks raise it after the same step.

    Attributes:
        by: What has asked: a signal, the stop file or the time limit.
    """

    status = AGAIN

    def __init__(self, line: str, by: str) -> None:
        super().__init__(line)
        self.by = by


class AlreadySaidError(Exception):
    """The job has ended and its line has been printed; what is left to do is to exit with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def user_error(error: BaseException) -> UserError | None:
    """The refusal that an exception amounts to: itself, or an operating system error that names a file; else None."""
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror}")
    return error if isinstance(error, UserError) else None
