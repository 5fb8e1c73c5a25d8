"""Packages that only the exchange needs."""

from importlib import import_module
from typing import Any

from megaqk.errors import UserError


def transformers_library() -> Any:
    """The package.

    Raises:
        UserError: It is not installed, or older than what its configurations are written for.
    """
    try:
        library = import_module("transformers")
    except ImportError as error:
        raise UserError("transformers: is not installed; pip install 'megaqk[hf]'") from error
    if int(library.__version__.split(".")[0]) < 5:
        raise UserError(f"transformers {library.__version__}: must be 5 or later; pip install 'megaqk[hf]'")
    return library
