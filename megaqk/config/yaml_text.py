"""Reading and writing YAML as version 1.2 has it: `1e-4` is a number, `on` is text, a key appears once.

PyYAML follows YAML 1.1, where `1e-4` is text (a float needs a point and a signed exponent), `on` is a boolean,
`1:30` is ninety and the last of two equal keys wins in silence. Each of these has cost somebody a run.
"""

import re
from typing import Any

import yaml

# Of a document with its aliases written out; no configuration comes near either.
_MOST_NODES = 100_000
_MOST_LEVELS = 100
_FIRST_OF_NUMBER = list("-+.0123456789")
# The core schema of YAML 1.2.2, section 10.3.2.
_RESOLVERS: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _FIRST_OF_NUMBER),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _FIRST_OF_NUMBER,
    ),
    ("merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        """Build an integer; a leading zero means nothing, where YAML 1.1 reads octal."""
        text = self.construct_scalar(node)
        return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


class _Dumper(yaml.SafeDumper):
    def represent_leaf_list(self, values: list[Any]) -> yaml.Node:
        """Write a list of scalars on one line and any other list as a block."""
        flow = all(not isinstance(value, list | dict) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)

    def represent_text(self, text: str) -> yaml.Node:
        """Write text, with line breaks other than a newline escaped: in plain style PyYAML reads them as spaces."""
        style = '"' if any(character in text for character in "\r\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


# The dumper keeps the 1.1 resolvers beside ours: text that either version would read as something else is quoted.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_core_int)
_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_leaf_list)


def parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Args:
        text: The document.

    Returns:
        Its value; None for an empty document.

    Raises:
        ValueError: Where the text is no YAML, repeats a key or is far too large; one line, as a rule with the position.
    """
    try:
        loader = _Loader(text)
        document = loader.get_single_node()
        if document is None:
            return None
        _measure(document, {})
        # Copied, so that what an override writes through one alias does not show through the others.
        return _plain(loader.construct_document(document))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Count the nodes and levels of a value before it is built, and refuse repeated keys.

    An alias counts as all that it stands for: nine lines of aliases can mean a billion nodes, which are one object
    each to YAML but not to who checks or prints them.
    """
    if id(node) in known:
        return known[id(node)]
    # Until it is known: a value within itself stands for any number.
    known[id(node)] = _MOST_NODES, 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    below = [_measure(child, known) for child in children]
    size, levels = 1 + sum(size for size, _ in below), 1 + max((levels for _, levels in below), default=0)
    if size > _MOST_NODES or levels > _MOST_LEVELS:
        problem = f"stands for more than {_MOST_NODES} values" if size > _MOST_NODES else "nested too deeply"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    known[id(node)] = size, levels
    return size, levels


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)


def format_yaml(value: Any) -> str:
    """Write a value so that `parse_yaml` gives it back: block style, keys in their order, leaf lists on one line.

    Args:
        value: Mappings, lists and scalars; a tuple is written as a list.

    Returns:
        The document, ending in a newline.
    """
    return yaml.dump(_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def show(value: object) -> str:
    """A value as a user would write it in YAML, shortened; what YAML cannot express is shown as Python would."""
    try:
        text = yaml.dump(_plain(value), Dumper=_Dumper, sort_keys=False, default_flow_style=True, allow_unicode=True)
    except yaml.YAMLError:
        text = repr(value)
    return shorten(text.removesuffix("...\n"))


def shorten(text: str) -> str:
    """Text on one line of at most 80 characters, with `...` in place of what was cut."""
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
