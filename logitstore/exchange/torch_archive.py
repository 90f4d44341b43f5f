"""Tensors of a `torch.save` file, without torch and without running its pickle.

The file is a zip: `data.pkl` describes the object, `data/<key>` holds each storage's bytes. A pickle is a
program; here its opcodes are listed (never executed) and interpreted by a machine that knows lists,
tuples, dicts, numbers, strings and tensors, and refuses everything else.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitstore.errors import UnsupportedInputError

MAX_DESCRIPTION_BYTES = 16 * 2**20
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<u1",
    "UInt16Storage": "<u2",
    "UInt32Storage": "<u4",
}
_DTYPES = {"torch.uint16": "<u2", "torch.uint32": "<u4", "torch.float16": "<f2", "torch.bool": "<u1"}
_CONSTANTS = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = {"PROTO", "FRAME", "STOP"}
MAX_DIMENSIONS = 64
_REFUSED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,  # also encrypted members, unknown compression and too deep a recursion
    TypeError,
    ValueError,
)
"""What zipfile, pickletools and a program that mixes up its stack raise."""


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names; it is only ever compared with known ones."""

    text: str


_MARK = _Name("mark")


def read_archive(data: bytes) -> Any:
    """The saved object, tensors as numpy arrays. Raises UnsupportedInputError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Machine(archive).run()
    except _REFUSED as error:
        raise UnsupportedInputError(
            f"this is not a torch.save file of plain tensors ({type(error).__name__}: {error})"
        ) from error


class _Machine:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if name is None:
            raise ValueError("the zip has no member data.pkl")
        self._root = name.removesuffix("data.pkl")
        if archive.getinfo(name).file_size > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"its description has more than {MAX_DESCRIPTION_BYTES} bytes")
        self._program = archive.read(name)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self._program):
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _IGNORED:
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(f"{module}.{attribute}"))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        else:
            self._combine(name)

    def _combine(self, name: str) -> None:
        stack = self._stack
        if name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = self._since_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][_plain_key(key)] = value
        elif name == "SETITEMS":
            items = self._since_mark()
            stack[-1].update(zip(map(_plain_key, items[::2]), items[1::2], strict=True))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._build(function, arguments))
        else:
            raise ValueError(f"its description uses {name}, which plain tensors do not need")

    def _since_mark(self) -> list[Any]:
        start = max(place for place, item in enumerate(self._stack) if item is _MARK)
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items

    def _storage(self, description: tuple[Any, ...]) -> bytes | np.ndarray:
        kind, storage_type, key, _, _ = description
        if kind != "storage" or not isinstance(key, str) or not key.isdigit():
            raise ValueError("a storage is not described as torch does")
        name = f"{self._root}data/{key}"
        if self._archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch.save never does")
        data = self._archive.read(name)
        type_name = storage_type.text.rpartition(".")[2]
        return data if type_name == "UntypedStorage" else np.frombuffer(data, _STORAGES[type_name])

    def _build(self, function: _Name, arguments: tuple[Any, ...]) -> Any:
        if function.text == "collections.OrderedDict":
            return {}
        if function.text == "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, stride = arguments[:4]
            return _strided(storage, offset, shape, stride)
        if function.text == "torch._utils._rebuild_tensor_v3":
            storage, offset, shape, stride, _, _, dtype = arguments[:7]
            return _strided(np.frombuffer(storage, _DTYPES[dtype.text]), offset, shape, stride)
        raise ValueError(f"its description calls {function.text}, which plain tensors do not need")


def _plain_key(key: Any) -> str | int:
    """Tuples are refused: nested in themselves they take for ever to hash."""
    if not isinstance(key, str | int):
        raise ValueError(f"a dictionary has a key of type {type(key).__name__}")
    return key


def _strided(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """A view that is shown to lie inside the storage."""
    numbers = (offset, *shape, *stride)
    if (
        len(shape) != len(stride)
        or len(shape) > MAX_DIMENSIONS
        or any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers)
    ):
        raise ValueError(f"a tensor with {len(shape)} sizes and {len(stride)} strides is not plain")
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if last >= len(storage) or math.prod(shape) > len(storage):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {len(storage)} numbers")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
