"""Keys and passwords: found before they are saved, blotted out before they are shown.

A recipe is copied into run folders, cards and reports, so one that holds a secret is refused
(`find_secret`). Messages and command lines pass through `redact`. Both know the shapes of common
keys, credentials in addresses, and the values of this process's own secret variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

BLOT = "[redacted]"

_SHAPES = re.compile(
    r"""hf_[A-Za-z0-9]{20,}                       # Hugging Face
      |(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,} # GitHub
      |glpat-[A-Za-z0-9_-]{16,}                   # GitLab
      |(?:AKIA|ASIA)[0-9A-Z]{16}                  # AWS
      |AIza[0-9A-Za-z_-]{30,}                     # Google
      |xox[abprs]-[A-Za-z0-9-]{10,}               # Slack
      |\bsk-[A-Za-z0-9_-]{20,}                    # OpenAI and others
      |eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9._-]* # JSON web tokens
      |(?<=://)[^/\s:@'"]*:[^/\s@'"]+(?=@)        # user:password in an address
      |(?<=://)[^/\s:@'"]{16,}(?=@)""",  # a key in place of the user
    re.VERBOSE,
)
# `tokens=5` and `tokenizer=x` are no secrets; `token=x`, `--hf_token x` and `?sig=x` are.
_NAMED = re.compile(
    r"""((?:\b|[_-])(?:token|secret|password|passwd|api[_-]?key|secret[_-]?(?:access[_-]?)?key
      |access[_-]?key(?:[_-]?id)?|signature|sig|credentials?))(['"]?\s*[=:]\s*['"]?|\s+(?=\S))
      ([^\s'"&]{4,})""",
    re.VERBOSE | re.IGNORECASE,
)
_VARIABLE = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?|ACCESS_KEY_ID)$")


def redact(text: str) -> str:
    """`text` with everything that looks like a secret replaced by a blot."""
    for value in _own_secrets():
        text = text.replace(value, BLOT)
    text = _SHAPES.sub(BLOT, text)
    return _NAMED.sub(lambda found: f"{found[1]}{found[2]}{BLOT}", text)


def find_secret(tree: Any, where: str = "") -> str | None:
    """The dotted key of the first text in plain values that holds a secret, or None."""
    inner: Any = tree.items() if isinstance(tree, dict) else ()
    for key, value in enumerate(tree) if isinstance(tree, list) else inner:
        path = f"{where}.{key}" if where else str(key)
        if isinstance(value, str) and _is_secret(value):
            return path
        if found := find_secret(value, path):
            return found
    return None


def _is_secret(text: str) -> bool:
    # Names are not looked for: `token:` begins many an honest prompt.
    in_address = "://" in text and _NAMED.search(text)
    own = any(value in text for value in _own_secrets())
    return bool(_SHAPES.search(text) or in_address or own)


def _own_secrets() -> Iterator[str]:
    """Values of the environment that are secret by their name; short ones could be any word."""
    for name, value in os.environ.items():
        if _VARIABLE.search(name.upper()) and len(value) >= 12 and not os.path.exists(value):
            yield value
