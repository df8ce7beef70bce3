"""YAML read the way people mean it: the scalars of YAML 1.2, no duplicate keys, no tags.

PyYAML speaks YAML 1.1, where `1e-3` is a string, `no` is false, `010` is eight and `1:30` is
ninety. Here numbers are decimal, exponents need no dot, and only true and false are booleans.
A tag can name a type to build, and an alias of aliases can stand for billions of values: tags are
refused, and what a file says is counted with its aliases written out.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
      |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
      |[0-9][0-9_]*[eE][-+]?[0-9]+
      |\.(?:inf|Inf|INF))$
      |\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
_SCALARS = (
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), "-+0123456789"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+.0123456789"),
    ("tag:yaml.org,2002:merge", re.compile(r"<<$"), "<"),
)


_MOST_VALUES = 100_000  # a recipe has some hundred
_DEEPEST = 64
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")  # neither a path nor UTF-8 can hold them


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[yaml.Node, int] = {}  # values in each finished node, aliases written out

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise _error(f"tag {event.tag!r} is not allowed: plain values only", event)
        if self._depth == _DEEPEST:
            raise _error(f"values are nested more than {_DEEPEST} deep", event)
        before = self._values
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if not isinstance(event, yaml.AliasEvent):
            self._values += 1
            self._sizes[node] = self._values - before
        elif node in self._sizes:
            self._values += self._sizes[node]
        else:
            raise _error(f"alias *{event.anchor} stands inside what it names", event)
        if self._values > _MOST_VALUES:
            raise _error(f"more than {_MOST_VALUES:,} values, aliases written out", event)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if _NOT_TEXT.search(node.value):
            raise _error("text holds a NUL or half a surrogate pair", node)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked on the composed node, where merge keys (`<<`) have not been expanded yet.
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                message = f"key {key.value!r} is given twice, first on line {lines[key.value]}"
                raise _error(message, key)
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = key.start_mark.line + 1
        return node


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    number = loader.construct_yaml_int(node)
    if abs(number) >= 2**63:
        raise _error(f"the number {node.value:.30} does not fit into 64 bits", node)
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))


def parse_yaml(text: str) -> Any:
    """Plain Python values from YAML text; yaml.YAMLError when it is malformed."""
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None
    except RecursionError:  # in the scanner, before depth can be counted
        raise yaml.YAMLError("values are nested too deep") from None
