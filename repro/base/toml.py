"""Scenario tables from the text of a TOML file, as such a text, and with overrides on top."""

import json
import re
import tomllib
from typing import Any

from repro.base.errors import ScenarioError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def tables_of(text: str, where: str) -> dict[str, Any]:
    """Return the tables of a TOML text. Raises ScenarioError for what is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{where}: not valid TOML: {error}") from error


def to_toml(tables: dict[str, Any]) -> str:
    """Return the text of a TOML file of these values, tables and arrays of tables; inner tables are inline."""
    plain = [f"{_key(key)} = {_value(value)}" for key, value in tables.items() if not _is_table(value)]
    parts = ["\n".join(plain)]
    for key, value in tables.items():
        if isinstance(value, dict):
            parts.append(_table(f"[{_key(key)}]", value))
        elif _is_table(value):
            parts += [_table(f"[[{_key(key)}]]", each) for each in value]
    return "\n\n".join(parts) + "\n"


def merged(tables: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with overrides key by key, down to the keys of inner tables such as target.pd."""
    result = dict(tables)
    for key, value in overrides.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _table(head: str, values: dict[str, Any]) -> str:
    return "\n".join([head, *(f"{_key(key)} = {_value(value)}" for key, value in values.items())])


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else str(value)


def _text(text: str) -> str:
    """Return a text in quotes: JSON's form, which is TOML's except for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
