"""YAML read the way people mean it: the scalars of YAML 1.2, and no duplicate keys.

PyYAML speaks YAML 1.1, where `1e-3` is a string, `no` is false, `010` is eight and `1:30` is
ninety. Here numbers are decimal, exponents need no dot, and only true and false are booleans.
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


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked on the composed node, where merge keys (`<<`) have not been expanded yet.
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                message = f"key {key.value!r} is given twice, first on line {lines[key.value]}"
                raise yaml.MarkedYAMLError(problem=message, problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = key.start_mark.line + 1
        return node


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))


def parse_yaml(text: str) -> Any:
    """Plain Python values from YAML text; yaml.YAMLError when it is malformed."""
    return yaml.load(text, Loader=_Loader)
