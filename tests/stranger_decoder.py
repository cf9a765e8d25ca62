"""A decoder of `.jxc` files in plain Python, written from docs/bitstream.md alone.

It shares no line with the package: python tests/stranger_decoder.py FILE.jxc TABLES.jxt
"""

import json
import struct
import sys
import zlib


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def read_tables(data):
    """(precision, [(offset, [c_0 = 0, ..., c_length, 2^n])] of the channels)."""
    magic, version, n, channels, columns = struct.unpack_from("<3sBBII", data)
    assert magic == b"JXT" and version == 1
    offsets = struct.unpack_from(f"<{channels}i", data, 13 + 4 * channels)  # behind the medians
    lengths = struct.unpack_from(f"<{channels}i", data, 13 + 8 * channels)
    assert columns == max(lengths) + 2
    at, rows = 13 + 12 * channels, []
    for offset, length in zip(offsets, lengths, strict=True):
        rows.append((offset, [0, *struct.unpack_from(f"<{length}H", data, at), 1 << n]))
        at += 2 * length
    assert at == len(data)
    return n, rows


def decode(payload, count, lanes, n, rows):
    """The symbols of one payload; lanes = 0 is the short form."""
    if lanes == 0:
        size = len(payload) if len(payload) <= 4 else (3 if len(payload) % 2 else 4)
        states, escapes, end = [int.from_bytes(payload[:size], "little")], b"", 1
        words = [w for (w,) in struct.iter_unpack("<H", payload[size:])]
    elif not payload:
        return []
    else:
        size, at = varint(payload, 0)
        low, high, end = at + 4 * lanes, len(payload) - size, 1 << 16
        states, escapes = list(struct.unpack_from(f"<{lanes}I", payload, at)), payload[high:]
        words = [w for (w,) in struct.iter_unpack("<H", payload[low:high])]
    words.reverse()
    symbols, where = [], 0
    for i in range(count):
        offset, c = rows[i % len(rows)]
        x = states[i % len(states)]
        t = x % 2**n
        k = max(k for k in range(len(c) - 1) if c[k] <= t)
        x = (c[k + 1] - c[k]) * (x // 2**n) + t - c[k]
        short_of_words = lanes == 0 and not words
        states[i % len(states)] = x if x >= 2**16 or short_of_words else 2**16 * x + words.pop()
        symbols.append(None if k == len(c) - 2 else offset + k)
    assert not words and all(x == end for x in states)
    for i, symbol in enumerate(symbols):
        if symbol is None:
            v, where = varint(escapes, where)
            offset, c = rows[i % len(rows)]
            symbols[i] = offset + (-(v + 1) // 2 if v % 2 else len(c) - 2 + v // 2)
    assert where == len(escapes)
    return symbols


def read(data, tables):
    """(metadata, {name: ((H, W), (h, w, M), symbols)}) of a file."""
    n, rows = read_tables(tables)
    head = data[:13]
    assert head[:4] == b"JXC\x01"  # the 8 bytes behind it name the model: integers need none
    assert head[12] & 7 == 0  # factorised prior
    at, meta, streams = 13, None, {}

    def body(start, at):
        size, at = varint(data, at)
        crc, after = struct.unpack_from("<I", data, at)[0], data[at + 4 : at + 4 + size]
        assert crc == zlib.crc32(head + data[start:at] + after)
        return after, at + 4 + size

    if head[12] & 8:
        text, at = body(at, at)
        meta = json.loads(text)
    for _ in range(head[12] >> 4):
        start, at = at, at + 1 + data[at]
        name = data[start + 1 : at].decode()
        height, at = varint(data, at)
        width, at = varint(data, at)
        s, lanes = data[at] >> 4, 0 if data[at] & 15 == 15 else 1 << (data[at] & 15)
        payload, at = body(start, at + 1)
        h, w, m = -(-height >> s), -(-width >> s), len(rows)
        streams[name] = (height, width), (h, w, m), decode(payload, h * w * m, lanes, n, rows)
    assert at == len(data)
    return meta, streams


if __name__ == "__main__":
    meta, streams = read(*(open(path, "rb").read() for path in sys.argv[1:3]))
    json.dump({"meta": meta, "streams": streams}, sys.stdout)
