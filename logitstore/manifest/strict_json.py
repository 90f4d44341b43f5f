"""JSON to frozen dataclasses and back, trusting nothing.

What a store holds may have been written by anyone: sizes are bounded before parsing, keys must be
exactly the fields of the dataclass, and every value must have the declared type. Numbers must be
finite, no key may repeat, integers stay within 63 bits, and text is Unicode: no half of a surrogate pair.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

from logitstore.errors import CorruptManifestError

MAX_INTEGER = 2**63 - 1
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
"""The only way in which JSON can say half of a surrogate pair, which is no Unicode text."""

Record = TypeVar("Record")


def encode(record: Any) -> bytes:
    """Canonical JSON of a dataclass instance or plain value: sorted keys, no spaces, UTF-8.

    Raises ValueError for numbers that are not finite and text that is not Unicode.
    """
    plain = _plain(record)
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def _plain(value: Any) -> Any:
    """Dataclass instances as dictionaries, without fields that are left out where they are their default."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if not _is_record(value):
        return value
    found = ((item, getattr(value, item.name)) for item in dataclasses.fields(value))
    return {item.name: _plain(one) for item, one in found if not _may_be_absent(item) or one != item.default}


def _may_be_absent(item: dataclasses.Field[Any]) -> bool:
    return bool(item.metadata.get("absent_if_default"))


def _is_record(value: Any) -> TypeGuard[Any]:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def parse_object(data: bytes, *, what: str, max_bytes: int) -> dict[str, Any]:
    """One JSON object of at most `max_bytes`. Raises CorruptManifestError naming `what`."""
    if len(data) > max_bytes:
        raise CorruptManifestError(
            f"{what} has more than {max_bytes} bytes, the most this reader parses; "
            "it was not written by this software, or is damaged"
        )
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=distinct_keys
        )
        if SURROGATE_ESCAPE.search(data):
            encode(value)  # refuses half of a pair
    except (ValueError, RecursionError) as error:
        raise CorruptManifestError(
            f"{what} is not valid JSON ({error}); restore it from a copy of the store"
        ) from error
    if not isinstance(value, dict):
        raise CorruptManifestError(f"{what} is a JSON {type(value).__name__}, but must be an object")
    return value


def decode(record_type: type[Record], value: Any, *, what: str) -> Record:
    """`value` (parsed JSON) as a `record_type`. Raises CorruptManifestError naming the field."""
    return _decoder_of(record_type)(value, what)


def decode_known(record_type: type[Record], value: Any, *, what: str) -> Record:
    """Like `decode`, for objects that other versions write too: an unknown field is left out, a missing one
    that has a default takes it. Raises CorruptManifestError naming the field."""
    if not isinstance(value, dict):
        raise _wrong_type(what, value, "an object")
    hints = typing.get_type_hints(record_type)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(typing.cast(Any, record_type)):
        if item.name in value:
            found[item.name] = _decoder_of(hints[item.name])(value[item.name], f"{what}.{item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise CorruptManifestError(f"{what} lacks the field {item.name!r}, which is required")
    return record_type(**found)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of two values under one key the first would be lost in silence: a ValueError."""
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object repeats the key {next(key for key in keys if keys.count(key) > 1)!r}")
    return result


Decoder = Callable[[Any, str], Any]


@functools.cache
def _decoder_of(declared: Any) -> Decoder:
    """A function (value, where) -> value for one declared type of a dataclass field."""
    if dataclasses.is_dataclass(declared):
        return _dataclass_decoder(typing.cast(type, declared))
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin is types.UnionType:
        return _optional_decoder(declared, arguments)
    if origin is tuple:
        return _tuple_decoder(arguments[0])
    if origin is dict:
        return _dict_decoder(arguments[1])
    if declared in (str, int, float, bool, object):
        return functools.partial(_scalar, declared)
    raise TypeError(f"no strict JSON decoder for the declared type {declared!r}")


def _dataclass_decoder(record_type: type) -> Decoder:
    hints = typing.get_type_hints(record_type)
    items = dataclasses.fields(record_type)
    fields = {item.name: _decoder_of(hints[item.name]) for item in items}
    required = {item.name for item in items if not _may_be_absent(item)}

    def decode_record(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong_type(where, value, "an object")
        if unknown := sorted(value.keys() - fields.keys()):
            raise CorruptManifestError(f"{where} has the unknown field {unknown[0]!r:.80}; it must not")
        if missing := sorted(required - value.keys()):
            raise CorruptManifestError(f"{where} lacks the field {missing[0]!r}, which is required")
        return record_type(**{key: fields[key](item, f"{where}.{key}") for key, item in value.items()})

    return decode_record


def _optional_decoder(declared: Any, arguments: tuple[Any, ...]) -> Decoder:
    inner = [argument for argument in arguments if argument is not types.NoneType]
    if len(inner) != 1 or len(arguments) != 2:
        raise TypeError(f"only `X | None` unions are supported, not {declared!r}")
    decode_inner = _decoder_of(inner[0])
    return lambda value, where: None if value is None else decode_inner(value, where)


def _tuple_decoder(item_type: Any) -> Decoder:
    decode_item = _decoder_of(item_type)

    def decode_tuple(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _wrong_type(where, value, "a list")
        return tuple(decode_item(item, f"{where}[{index}]") for index, item in enumerate(value))

    return decode_tuple


def _dict_decoder(value_type: Any) -> Decoder:
    decode_item = _decoder_of(value_type)

    def decode_dict(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong_type(where, value, "an object")
        return {key: decode_item(item, f"{where}.{key}") for key, item in value.items()}

    return decode_dict


def _scalar(declared: type, value: Any, where: str) -> Any:
    if declared is object:
        return value
    if declared is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= MAX_INTEGER else math.inf
    if type(value) is not declared:
        raise _wrong_type(where, value, {str: "a string", int: "an integer", bool: "a boolean"}.get(declared))
    if declared is int and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise CorruptManifestError(f"{where} does not fit 63 bits; it must")
    if declared is float and not math.isfinite(value):
        raise CorruptManifestError(f"{where} is not finite; it must be")
    return value


def _wrong_type(where: str, value: Any, expected: str | None) -> CorruptManifestError:
    return CorruptManifestError(
        f"{where} is {type(value).__name__} {value!r:.60}, but must be {expected or 'a number'}"
    )
