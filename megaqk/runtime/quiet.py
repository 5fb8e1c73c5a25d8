"""Keep what libraries print about themselves out of the run's output."""

import contextlib
import io
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow standard output, unless MEGAQK_VERBOSE is set. Errors and warnings go to standard error as ever."""
    if os.environ.get("MEGAQK_VERBOSE"):
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()):
        yield
