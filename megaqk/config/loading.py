"""From a YAML file and dotted overrides to a `Config`, and back to YAML."""

from argparse import ArgumentParser
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megaqk.config.problems import describe
from megaqk.config.qk_timing import SELECTOR_FORMS, TimingRule
from megaqk.config.root import Config
from megaqk.config.yaml_text import format_yaml, parse_yaml, shorten, show
from megaqk.errors import AgreedError, UserError


def add_config_arguments(parser: ArgumentParser) -> None:
    """Let a command take what `load_config` does, as `config` and `overrides`."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    overrides = parser.add_argument(
        "overrides", metavar="key=value", nargs="+", default=[], help="overrides, such as training.steps=100"
    )
    # With nargs="*" argparse settles for none as soon as CONFIG is followed by an option, and then refuses the rest.
    overrides.required = False


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: A YAML file with the sections of `Config`.
        overrides: `section.key=value` each, applied in order; the value is YAML and replaces what was there. A number
            in the path is an index into a list, as in `qk_timing.rules.0.hold=0.2`.

    Returns:
        The checked configuration.

    Raises:
        UserError: One line that names the first refused key, its value and what is allowed.
    """
    raw = read_mapping(Path(path), "sections such as model and training")
    for override in overrides:
        apply_override(raw, override)
    return build_config(raw)


def read_mapping(path: Path, of_what: str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises:
        UserError: It cannot be read, is no YAML, or holds something else than a mapping `of_what`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: cannot be read as a configuration: {reason}") from None
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {show(raw)}: must be a mapping of {of_what}")
    return raw


def build_config(raw: dict[str, Any]) -> Config:
    """Check plain values against the schema.

    Args:
        raw: Sections as plain mappings, lists and scalars; a section that is None counts as empty.

    Returns:
        The checked configuration.

    Raises:
        UserError: One line, as from `load_config`.
    """
    # A section whose keys are all commented out arrives as None.
    raw = {key: {} if value is None and key in Config.model_fields else value for key, value in raw.items()}
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = describe(error)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise AgreedError(" ".join(problems[0].splitlines()) + more)


def dump_config(config: Config) -> str:
    """Write out a configuration with every default resolved, as YAML that `load_config` reads back to an equal one."""
    raw = config.model_dump(mode="json")
    _separate_rules(raw)
    return format_yaml(raw)


def restore_config(raw: dict[str, Any]) -> Config:
    """The configuration whose `model_dump` was kept, perhaps by a version that lacked some keys.

    Raises:
        UserError: One line, as from `load_config`.
    """
    raw = deepcopy(raw)
    _separate_rules(raw)
    return build_config(raw)


def _separate_rules(raw: dict[str, Any]) -> None:
    """Leave out of dumped values, in place, what the schema refuses beside others."""
    timing = raw["qk_timing"]
    if timing["rules"]:
        # The keys of the single rule beside a list of rules.
        for name in TimingRule.model_fields:
            del timing[name]
        rules = timing["rules"]
    else:
        rules = [timing]
    for rule in rules:
        rule["layers"] = {form: value for form, value in rule["layers"].items() if value is not None}


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Write one `a.b.c=value` into plain values, in place.

    Raises:
        UserError: It is none, or there is no such place.
    """
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise AgreedError(f"{override}: must be section.key=value, for example training.steps=100")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise AgreedError(f"{path} = {shorten(text)}: the value is no YAML: {error}") from None
    node: Any = raw
    for depth, key in enumerate(keys, start=1):
        step: str | int = key
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                allowed = f"must be an index below {len(node)}, the length of the list"
                raise AgreedError(f"{'.'.join(keys[:depth])}: {key} {allowed}")
            step = int(key)
        elif not isinstance(node, dict):
            raise AgreedError(f"{'.'.join(keys[: depth - 1])} = {show(node)}: has no keys to override")
        elif key in SELECTOR_FORMS and keys[depth - 2] == "layers":
            # Another way of naming layers replaces the one in the file instead of clashing with it.
            for form in set(SELECTOR_FORMS) - {key}:
                node.pop(form, None)
        if depth == len(keys):
            node[step] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[step]
