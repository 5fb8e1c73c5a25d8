"""What pydantic found wrong, in one line a problem and in the words of a configuration file."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from megaqk.config.root import Config
from megaqk.config.yaml_text import show

_KINDS = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be an integer",
    "float_parsing": "must be a number",
    "path_type": "must be text",
    "dict_type": "must be a mapping",
    "model_type": "must be a section of keys",
    "model_attributes_type": "must be a section of keys",
}
_BOUNDS = {
    "greater_than": ("must be above", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be below", "lt"),
    "less_than_equal": ("must be at most", "le"),
}
_NAMES_KEY = re.compile(r"[A-Za-z_][\w.\[\]]* = ")


def describe(error: ValidationError) -> list[str]:
    """Translate validation errors.

    Args:
        error: What `Config.model_validate` raised.

    Returns:
        A line `key = value: what is allowed` for each refused key, in the order of the schema, unknown keys first:
        a misspelt key is the likelier cause of whatever else is wrong.
    """
    lines: dict[str, list[str]] = {"unknown": [], "other": []}
    for problem in error.errors(include_url=False):
        line = _describe_one(problem)
        found = lines["unknown" if problem["type"] == "extra_forbidden" else "other"]
        if line not in found:
            found.append(line)
    return lines["unknown"] + lines["other"]


def _describe_one(problem: Mapping[str, Any]) -> str:
    location: tuple[int | str, ...] = problem["loc"]
    key, value, kind = _join(location), show(problem["input"]), problem["type"]
    context: dict[str, Any] = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key} = {value}: unknown key; {_suggest(location)}"
    if kind == "value_error":
        return _own_message(key, value, str(context["error"]))
    if kind == "missing" and isinstance(location[-1], int):
        return f"{_join(location[:-1])} = {value}: must have at least {location[-1] + 1} entries"
    if kind == "missing":
        return f"{key}: must be given"
    if kind == "invalid_key":
        return f"{_join((*location[:-1], str(location[-1])))}: a key must be text"
    return describe_value(key, problem)


def describe_value(key: str, problem: Mapping[str, Any]) -> str:
    """Describe a value of the wrong type or out of bounds.

    Args:
        key: The key as the user writes it.
        problem: One of `ValidationError.errors()`.

    Returns:
        A line `key = value: what is allowed`.
    """
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        allowed = f"{words} {context[name]}"
    elif kind in ("literal_error", "enum"):
        allowed = f"must be one of {context['expected']}".replace("'", "").replace(" or ", ", ")
    elif kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        number = context["min_length"] if kind == "too_short" else context["max_length"]
        allowed = f"must have {bound} {number} {'entry' if number == 1 else 'entries'}"
    elif kind == "string_too_short":
        allowed = "must not be empty"
    else:
        allowed = _KINDS.get(kind) or problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{key} = {show(problem['input'])}: {allowed}"


def _own_message(key: str, value: str, message: str) -> str:
    """The message of one of our validators, with the section of its key in front."""
    if not key:
        return message
    if _NAMES_KEY.match(message):
        return f"{key}.{message}"
    return f"{key} = {value}: {message}"


def _join(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _suggest(location: tuple[int | str, ...]) -> str:
    """What the user may have meant: a similar key of the section, the same key elsewhere, or all that there is."""
    section = _section_at(location[:-1])
    wrong, prefix = str(location[-1]), _join(location[:-1])
    near = difflib.get_close_matches(wrong, section.model_fields, n=1)
    if near:
        return f"did you mean {prefix + '.' if prefix else ''}{near[0]}?"
    for name, field in Config.model_fields.items():
        if wrong in getattr(field.annotation, "model_fields", ()):
            return f"did you mean {name}.{wrong}?"
    return f"allowed in {prefix or 'the file'}: {', '.join(section.model_fields)}"


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The schema of the section that a location leads to."""
    section: type[BaseModel] = Config
    for part in location:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            candidates = (annotation, *get_args(annotation))
            section = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return section
