"""What a user is told, and the exit status that goes with it."""

FAULT, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit statuses: a defect or a broken machine; the user must mend something; Ctrl-C. 0 is success."""


class UserError(Exception):
    """Something the user can mend: a configuration key, a file, an argument.

    The message is one line that names the key or file, its value and what is allowed. The command line prints it
    without a traceback and exits with status 2; anything else that escapes is a defect of ours and keeps its
    traceback.
    """


class AgreedError(UserError):
    """A `UserError` that every rank of a job has raised at the same place; it names the rank that met it."""


class DivergedError(AgreedError):
    """Training has left the finite numbers, which all ranks see at the same step."""


class AlreadySaidError(Exception):
    """The job has failed and its line has been printed; what is left to do is to exit with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def user_error(error: BaseException) -> UserError | None:
    """The refusal that an exception amounts to: itself, or an operating system error that names a file; else None."""
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror}")
    return error if isinstance(error, UserError) else None
