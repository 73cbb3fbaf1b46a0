"""How messages are written: the wire format of Protocol Buffers, as much as the API has of it.

A message is a frozen dataclass whose fields say their numbers and have defaults::

    @dataclass(frozen=True)
    class Mount:
        type: Annotated[str, 1] = ""
        options: Annotated[tuple[str, ...], 4] = ()

Fields are ``str``, ``int`` (int64, int32 and enums, all varints), another message, tuples of
strings or of messages, and ``Mapping[str, str]``. As proto3 has it, a field with its default
is not written, and one that is not known is passed over.

The format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

#: What follows a field's number: a number, eight bytes, a length and as many bytes, four bytes.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}
#: A varint has 64 bits, seven in a byte.
_VARINT_LIMIT: Final = 10

_Message = TypeVar("_Message")


class MalformedError(ValueError):
    """Bytes that are no message, or not the one that is expected."""


class _Field(NamedTuple):
    name: str
    number: int
    write: Callable[[Any], bytes]
    """Returns the bytes of the field, none for its default."""
    read: Callable[[Any, bytes | int], Any]
    """Returns the value of the field after one more was read: what it was, what is read."""


#: The fields of each kind of message that was met.
_KNOWN: Final[dict[type, tuple[_Field, ...]]] = {}


def encode(message: Any) -> bytes:
    """Return the bytes of *message*."""
    return b"".join(field.write(getattr(message, field.name)) for field in _fields(type(message)))


def decode(kind: type[_Message], data: bytes) -> _Message:
    """Return the message of *kind* that *data* are. Raises `MalformedError`."""
    known = {field.number: field for field in _fields(kind)}
    values: dict[str, Any] = {}
    for number, value in raw_fields(data):
        field = known.get(number)
        if field is not None:
            values[field.name] = field.read(values.get(field.name), value)
    # While there may be more of them they are lists, that a message of millions takes no hours.
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )


def raw_fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the number and the value of each field in *data*, in their order.

    A varint is a number, all else bytes. Raises `MalformedError`.
    """
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        number, kind = key >> 3, key & 7
        if not number:
            raise MalformedError("a field with the number 0")
        if kind == _VARINT:
            value, place = _read_varint(data, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _read_varint(data, place)
        elif kind in _FIXED_SIZES:
            length = _FIXED_SIZES[kind]
        else:
            raise MalformedError(f"field {number}: of the unknown kind {kind}")
        if place + length > len(data):
            raise MalformedError(f"field {number}: ends before its {length} bytes")
        yield number, data[place : place + length]
        place += length


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at *place*, and the place after it."""
    value = 0
    for index in range(_VARINT_LIMIT):
        if place + index >= len(data):
            raise MalformedError("a number ends before its last byte")
        byte = data[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + index + 1
    raise MalformedError("a number of more than 64 bits")


def _varint(number: int) -> bytes:
    """Return *number*; negative ones are written as their two's complement of 64 bits."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _delimited(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _fields(kind: type) -> tuple[_Field, ...]:
    """Return the fields of the dataclass *kind*, as its annotations tell them."""
    known = _KNOWN.get(kind)
    if known is None:
        hints = get_type_hints(kind, include_extras=True)
        known = _KNOWN[kind] = tuple(
            _field(f"{kind.__name__}.{field.name}", field.name, *get_args(hints[field.name])[::-1])
            for field in dataclass_fields(kind)
        )
    return known


def _field(shown: str, name: str, number: int, kind: Any) -> _Field:
    """Return how the field *name* is written and read, *shown* as such in errors."""
    if kind is int:
        return _number_field(shown, name, number)
    if kind == Mapping[str, str]:
        return _map_field(shown, name, number)
    if get_origin(kind) is tuple:
        return _repeated_field(shown, name, number, get_args(kind)[0])
    to_bytes, to_value = _item(shown, kind)

    def write(value: Any) -> bytes:
        written = to_bytes(value)
        return _delimited(number, written) if written else b""

    return _Field(name, number, write, lambda _, value: to_value(value))


def _repeated_field(shown: str, name: str, number: int, kind: Any) -> _Field:
    to_bytes, to_value = _item(shown, kind)

    def write(values: tuple[Any, ...]) -> bytes:
        return b"".join(_delimited(number, to_bytes(value)) for value in values)

    def read(so_far: list[Any] | None, value: bytes | int) -> list[Any]:
        so_far = [] if so_far is None else so_far
        so_far.append(to_value(value))
        return so_far

    return _Field(name, number, write, read)


def _number_field(shown: str, name: str, number: int) -> _Field:
    def read(_: Any, value: bytes | int) -> int:
        if not isinstance(value, int):
            raise MalformedError(f"{shown}: not a number")
        return value - (1 << 64) if value >> 63 else value

    return _Field(
        name,
        number,
        lambda value: _varint(number << 3 | _VARINT) + _varint(value) if value else b"",
        read,
    )


def _map_field(shown: str, name: str, number: int) -> _Field:
    """Return the same for a mapping: messages of two fields, 1 the key and 2 the value."""
    to_bytes, to_text = _item(shown, str)

    def write(values: Mapping[str, str]) -> bytes:
        return b"".join(
            _delimited(number, _delimited(1, to_bytes(key)) + _delimited(2, to_bytes(value)))
            for key, value in values.items()
        )

    def read(so_far: dict[str, str] | None, value: bytes | int) -> dict[str, str]:
        pair = {n: to_text(part) for n, part in raw_fields(_bytes(shown, value)) if n in (1, 2)}
        so_far = {} if so_far is None else so_far
        so_far[pair.get(1, "")] = pair.get(2, "")
        return so_far

    return _Field(name, number, write, read)


def _item(shown: str, kind: Any) -> tuple[Callable[[Any], bytes], Callable[[bytes | int], Any]]:
    """Return how one string or message of *kind* becomes bytes, and bytes become one."""
    if kind is not str:
        return encode, lambda value: decode(kind, _bytes(shown, value))

    def to_text(value: bytes | int) -> str:
        try:
            return _bytes(shown, value).decode()
        except UnicodeDecodeError as error:
            raise MalformedError(f"{shown}: not UTF-8") from error

    return str.encode, to_text


def _bytes(shown: str, value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise MalformedError(f"{shown}: a number")
    return value
