"""Turns what a TOML file says into a struct, and what is wrong into a sentence with place and next step."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from repro.base.errors import ScenarioError, nearest

Path = tuple[str | int, ...]
Struct = TypeVar("Struct", bound=msgspec.Struct)

SHOWN_CHARACTERS_MAX = 60
WORDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "an array",
    "object": "a table",
}  # fmt: skip

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_TYPES = re.compile(r"Expected `([^`]*)`(?: of (?:at (?:least|most) )?length (\d+))?, got")
_MISSING = re.compile(r"missing required field `([^`]*)`")


def to_struct(raw: Any, kind: type[Struct], where: str, path: Path = ()) -> Struct:
    """Return `raw` as a struct. Raises ScenarioError for an unknown key, a wrong type or value.

    `where` names the file, and `path` the place in it that `raw` was found at.
    """
    for place, wrong in _wrong(raw, _type_info(kind), path):
        raise ScenarioError(f"{where}{_in_file(place)}: {wrong}")
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `$")
        inner = tuple(name or int(number) for name, number in _STEP.findall(at))
        place, wrong = _in_words(text, (*path, *inner), _at(raw, inner))
        raise ScenarioError(f"{where}{_in_file(place)}: {wrong}") from error


@cache
def _type_info(kind: type[msgspec.Struct]) -> inspect.Type:
    """Return what a file may say for this struct; made once, because it takes longer than all else of `to_struct`."""
    return inspect.type_info(kind)


def as_toml(value: object) -> str:
    """Return a value in TOML's spelling, shortened to fit a sentence."""
    if isinstance(value, str | bool | list | dict):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."


def _in_words(text: str, place: Path, value: object) -> tuple[Path, str]:
    """Return msgspec's complaint in the words of the file, and the key it is about."""
    missing, types = _MISSING.search(text), _TYPES.match(text)
    if missing:
        place = (*place, missing[1])
        return place, f'the key "{_key(place)}" is missing'
    if types is None:  # the struct's check names its fields
        return (*place, ""), text
    words = [WORDS.get(name, name) for name in types[1].split(" | ") if name != "null"]
    expected = " or ".join(words) + (f" of {types[2]}" if types[2] else "")
    return place, f"{_key(place)} = {as_toml(value)}; expected {expected}"


def _at(raw: Any, inner: Path) -> Any:
    for step in inner:
        raw = raw[step]
    return raw


def _in_file(place: Path) -> str:
    """Return a place's table as TOML writes it: ' [load]', ' [[fault]] 2', or nothing at the top."""
    if len(place) > 2 and isinstance(place[1], int):
        return f" [[{place[0]}]] {place[1] + 1}"
    return f" [{place[0]}]" if len(place) > 1 and isinstance(place[1], str) else ""


def _key(place: Path) -> str:
    """Return a place's key within its table."""
    if len(place) > 2 and isinstance(place[1], int):
        place = place[2:]
    elif len(place) > 1 and isinstance(place[1], str):
        place = place[1:]
    return "".join(f" item {step + 1}" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")


def _wrong(value: Any, kind: inspect.Type, place: Path) -> Iterator[tuple[Path, str]]:
    """Yield the places of unknown keys and impossible words, with what to write instead."""
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        yield from _wrong_in_struct(value, kind, place)
    elif isinstance(kind, inspect.UnionType) and isinstance(value, dict):
        yield from _wrong_in_union(value, kind, place)
    elif isinstance(kind, inspect.VarTupleType | inspect.ListType) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _wrong(item, kind.item_type, (*place, number))
    elif (
        isinstance(kind, inspect.DictType) and isinstance(kind.value_type, inspect.IntType) and isinstance(value, dict)
    ):
        for key, item in value.items():
            if type(item) is not int:  # msgspec does not name the key
                inner = (*place, key)
                yield inner, f"{_key(inner)} = {as_toml(item)}; expected a whole number"
    elif isinstance(kind, inspect.LiteralType) and value not in kind.values:
        yield place, _impossible(place, value, [str(each) for each in kind.values])


def _wrong_in_struct(value: dict[str, Any], kind: inspect.StructType, place: Path) -> Iterator[tuple[Path, str]]:
    fields = {field.encode_name: field.type for field in kind.fields}
    known = [*([kind.tag_field] if kind.tag_field else []), *fields]
    for key, item in value.items():
        if key not in known:
            yield (*place, key), f'unknown key {_key((*place, key))}; nearest: "{nearest(key, known)}"'
        elif key in fields:
            yield from _wrong(item, fields[key], (*place, key))


def _wrong_in_union(value: dict[str, Any], kind: inspect.UnionType, place: Path) -> Iterator[tuple[Path, str]]:
    structs = {str(each.tag): each for each in kind.types if isinstance(each, inspect.StructType) and each.tag}
    if not structs:  # a table that may be missing
        for plain in kind.types:
            yield from _wrong(value, plain, place) if isinstance(plain, inspect.StructType) else ()
        return
    tag_field = next(iter(structs.values())).tag_field
    assert tag_field is not None
    tag = value.get(tag_field)
    if isinstance(tag, str) and tag in structs:
        yield from _foreign_keys(value, structs, tag, place)
        yield from _wrong_in_struct(value, structs[tag], place)
    elif tag is not None:
        inner = (*place, tag_field)
        yield inner, _impossible(inner, tag, [str(name) for name in structs])


def _foreign_keys(
    value: dict[str, Any], structs: Mapping[str, inspect.StructType], tag: str, place: Path
) -> Iterator[tuple[Path, str]]:
    """Yield the keys that other members of a union have, and the one that `tag` names has not."""
    known = {name: {field.encode_name for field in kind.fields} for name, kind in structs.items()}
    foreign = set().union(*known.values()) - known[tag]
    for key in filter(foreign.__contains__, value):
        inner, owner = (*place, key), f"{structs[tag].tag_field} {tag}"
        yield inner, f"{_key(inner)} = {as_toml(value[key])} means nothing to {owner}; leave it out"


def _impossible(place: Path, value: object, words: list[str]) -> str:
    return f'{_key(place)} = {as_toml(value)}; use one of: {", ".join(words)} (nearest: "{nearest(str(value), words)}")'
