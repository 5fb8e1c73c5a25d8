"""What pydantic found wrong, in one line a problem and in the words of a configuration file."""

import ast
import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from megaqk.config.root import Config
from megaqk.config.yaml_text import show

# In the words of YAML instead of Python; what is not here is said as pydantic says it.
_KINDS = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a section of keys",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} {entries}",
    "too_long": "must have at most {max_length} {entries}",
}
_NAMES_KEY = re.compile(r"[A-Za-z_][\w.\[\]]* = ")


def describe(error: ValidationError, root: type[BaseModel] = Config) -> list[str]:
    """Translate validation errors.

    Args:
        error: What `model_validate` raised.
        root: Whose.

    Returns:
        A line `key = value: what is allowed` for each refused key, in the order of the schema, unknown keys first:
        a misspelt key is the likelier cause of whatever else is wrong.
    """
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    return list(dict.fromkeys(_describe_one(problem, root) for problem in problems))


def _describe_one(problem: Mapping[str, Any], root: type[BaseModel]) -> str:
    location: tuple[int | str, ...] = problem["loc"]
    key, value, kind = _join(location), show(problem["input"]), problem["type"]
    if kind == "extra_forbidden":
        return f"{key} = {value}: unknown key; {_suggest(location, root)}"
    if kind == "value_error":
        return _own_message(key, value, str(problem["ctx"]["error"]))
    if kind == "missing" and isinstance(location[-1], int):
        return f"{_join(location[:-1])} = {value}: must have {_length(location[:-1], root)} entries"
    if kind == "missing":
        return f"{key}: must be given"
    if kind == "invalid_key" or location[-1] == "[key]":
        *section, name = (part for part in location if part != "[key]")
        return f"{_join((*section, str(name)))}: a key must be text"
    return f"{key} = {value}: {_allowed(kind, problem)}{', or null' if type(None) in _members(location, root) else ''}"


def _allowed(kind: str, problem: Mapping[str, Any]) -> str:
    context: dict[str, Any] = problem.get("ctx", {})
    if kind == "literal_error":
        # pydantic lists them as Python writes them: 'gpt', 'llama' or None.
        values = ast.literal_eval(f"[{context['expected'].replace(' or ', ', ')}]")
        return f"must be one of {', '.join(map(show, values))}"
    if kind in _KINDS:
        bound = context.get("min_length", context.get("max_length"))
        return _KINDS[kind].format(entries="entry" if bound == 1 else "entries", **context)
    return str(problem["msg"]).replace("Input should", "must").replace("None", "null")


def _own_message(key: str, value: str, message: str) -> str:
    """The message of one of our validators, with the section of its key in front."""
    if not key:
        return message
    if _NAMES_KEY.match(message):
        return f"{key}.{message}"
    return f"{key} = {value}: {message}"


def _join(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _suggest(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """What the user may have meant: a similar key of the section, the same key elsewhere, or all that there is."""
    section = _section_at(location[:-1], root)
    wrong, prefix = str(location[-1]), _join(location[:-1])
    near = difflib.get_close_matches(wrong, section.model_fields, n=1)
    if near:
        return f"did you mean {prefix + '.' if prefix else ''}{near[0]}?"
    sections = root.model_fields.items()
    same = [f"{name}.{wrong}" for name, field in sections if wrong in getattr(field.annotation, "model_fields", ())]
    if same:
        return f"did you mean {' or '.join(same)}?"
    return f"allowed in {prefix or 'the file'}: {', '.join(section.model_fields)}"


def _members(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[Any, ...]:
    """The type of the key that a location leads to, and what that is made of: `int | None` holds `int` and None."""
    if location and isinstance(location[-1], int):
        return tuple(inner for member in _members(location[:-1], root) for inner in get_args(member))
    field = _section_at(location[:-1], root).model_fields.get(str(location[-1])) if location else None
    return (field.annotation, *get_args(field.annotation)) if field else ()


def _length(location: tuple[int | str, ...], root: type[BaseModel]) -> int:
    """Entries of a list of fixed length."""
    return next(len(get_args(member)) for member in _members(location, root) if get_origin(member) is tuple)


def _section_at(location: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    """The schema of the last section on the way that a location describes."""
    section = root
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            candidates = [annotation, *get_args(annotation)]
            candidates += [inner for item in candidates for inner in get_args(item)]
            section = next(
                (item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), section
            )
    return section
