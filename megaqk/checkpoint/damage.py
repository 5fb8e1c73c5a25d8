"""What is wrong with a checkpoint on disk, as distinct from what does not fit a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaqk.errors import UserError


class DamagedError(UserError):
    """A file of a checkpoint is not what was written; an older checkpoint may be whole."""


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading and parsing a file into a `DamagedError` that names it."""
    try:
        yield
    except OSError as error:
        raise DamagedError(f"{path}: damaged, it cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DamagedError(f"{path}: damaged ({type(error).__name__}: {error})") from error
