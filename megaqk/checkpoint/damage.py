"""What is wrong with a checkpoint on disk, as distinct from what does not fit a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaqk.errors import UserError


class DamagedError(UserError):
    """A file of a checkpoint is not what was written; an older checkpoint may be whole."""


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what is missing or cannot be parsed of a file into a `DamagedError` that names it.

    What a machine cannot read now (a stale handle, a bad disk, no permission) is a `UserError`: it says nothing of what
    is there, and nothing newer may be given up for it.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path}: damaged, it is not there ({error.strerror})") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); mend it, or move the checkpoint"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged ({type(error).__name__}: {error})") from error
