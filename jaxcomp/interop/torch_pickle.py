"""A pickle reader that knows PyTorch's weights and nothing else: no code of the file is ever run.

The pickle's opcodes are interpreted here one by one. Names stay names: a global is looked up in the
short list of `torch_objects` and never imported, so there is nothing that a file could call.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from jaxcomp.interop.torch_objects import CALLS, GLOBALS, Global, RefusedPickle, storage_of

MAX_BYTES = 2**24  # of one pickle: about 150,000 tensors
MAX_TEXT = 2**16  # of one name
MAX_INTEGER = 64  # bytes
_MARK = object()
_OPCODES = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}


def load(stream: BinaryIO) -> Any:
    """The value of the pickle at the stream's position, which ends up behind it.

    Returns:
      Dictionaries (plain ones, also for OrderedDict), lists, tuples, strings, bytes, numbers, None,
      `Global` and `Tensor`.

    Raises:
      RefusedPickle: damaged, larger than `MAX_BYTES`, or holding anything else.
    """
    machine = _Machine(stream)
    try:
        while (code := machine.take(1)) != b".":
            if code not in _ACTIONS:
                name = _OPCODES.get(code, f"0x{code.hex()}")
                raise RefusedPickle(f"it uses the pickle opcode {name}, which weights do not need")
            _ACTIONS[code](machine)
        return machine.pop()
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise RefusedPickle("its pickle is damaged") from error


class _Machine:
    """The stack, the memo and the input of one pickle."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.left = MAX_BYTES
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise RefusedPickle(f"its pickle is larger than {MAX_BYTES} bytes, or damaged")
        self.left -= count
        data = self.stream.read(count)
        if len(data) != count:
            raise RefusedPickle("its pickle ends early")
        return data

    def number(self, form: str) -> Any:
        """One number in `struct`'s form."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Text up to the end of the line."""
        data = self.stream.readline(MAX_TEXT)
        self.left -= len(data)
        if not data.endswith(b"\n"):
            raise RefusedPickle("its pickle ends early")
        return data[:-1].decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise RefusedPickle("its pickle is damaged")
        return value

    def pop_marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise RefusedPickle("its pickle is damaged")
        self.push(self.memo[index])


def _forget(value: Any) -> None:
    del value


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.push(value)


def _packed(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.number(form))


def _bytes(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(form)))


def _text(form: str, encoding: str = "utf-8") -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(form)).decode(encoding))


def _integer(form: str) -> Callable[[_Machine], None]:
    def action(m: _Machine) -> None:
        count = m.number(form)
        if not 0 <= count <= MAX_INTEGER:
            raise RefusedPickle(f"it holds an integer of {count} bytes")
        m.push(int.from_bytes(m.take(count), "little", signed=True))

    return action


def _tuple(count: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(tuple([m.pop() for _ in range(count)][::-1]))


def _protocol(m: _Machine) -> None:
    if (version := m.take(1)[0]) > 5:
        raise RefusedPickle(f"it has pickle protocol {version}; 2 to 5 are known")


def _extend(m: _Machine, items: list[Any]) -> None:
    if not isinstance(m.stack[-1], list):
        raise RefusedPickle("its pickle is damaged")
    m.stack[-1].extend(items)


def _update(m: _Machine, items: list[Any]) -> None:
    if not isinstance(m.stack[-1], dict) or len(items) % 2:
        raise RefusedPickle("its pickle is damaged")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # No tuples: hashing a deeply nested one would overflow the interpreter's own stack.
        if not isinstance(key, str | int | float | bytes | None):
            raise RefusedPickle(f"it has a dictionary key of type {type(key).__name__}")
        m.stack[-1][key] = value


def _build(m: _Machine) -> None:
    """State of an object: only dictionaries have some (`_metadata` of modules), not needed here."""
    m.pop()
    if not isinstance(m.stack[-1], dict):
        raise RefusedPickle("it sets the state of something that is not a dictionary")


def _global(m: _Machine, module: Any, name: Any) -> None:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise RefusedPickle("its pickle is damaged")
    full = f"{module}.{name}"
    if full not in GLOBALS:
        raise RefusedPickle(f"it asks for {full[:200]!r}, which is not a part of weights")
    m.push(Global(full))


def _reduce(m: _Machine) -> None:
    arguments, function = m.pop(), m.pop()
    action = CALLS.get(function.name) if isinstance(function, Global) else None
    if action is None or not isinstance(arguments, tuple):
        name = function.name if isinstance(function, Global) else type(function).__name__
        raise RefusedPickle(f"it calls {name!r}, which is not a part of weights")
    try:
        m.push(action(*arguments))
    except (TypeError, AttributeError, KeyError) as error:
        raise RefusedPickle(
            f"it calls {function.name!r} with arguments it does not take"
        ) from error


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": lambda m: _forget(m.number("<Q")),  # a frame: only a hint for buffering
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"J": _packed("<i"),
    b"K": _packed("<B"),
    b"M": _packed("<H"),
    b"\x8a": _integer("<B"),
    b"\x8b": _integer("<i"),
    b"G": _packed(">d"),
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"\x8d": _text("<Q"),
    b"T": _text("<I", "latin-1"),
    b"U": _text("<B", "latin-1"),
    b"B": _bytes("<I"),
    b"C": _bytes("<B"),
    b")": _constant(()),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": lambda m: m.push(tuple(m.pop_marked())),
    b"]": lambda m: m.push([]),
    b"a": lambda m: _extend(m, [m.pop()]),
    b"e": lambda m: _extend(m, m.pop_marked()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: _update(m, [m.pop(), m.pop()][::-1]),
    b"u": lambda m: _update(m, m.pop_marked()),
    b"(": _constant(_MARK),
    b"0": lambda m: _forget(m.pop()),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"c": lambda m: _global(m, m.line(), m.line()),
    b"\x93": lambda m: _global(m, *[m.pop(), m.pop()][::-1]),
    b"R": _reduce,
    b"b": _build,
    b"Q": lambda m: m.push(storage_of(m.pop())),
}
