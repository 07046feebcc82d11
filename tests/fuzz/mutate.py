"""Bytes -> damaged bytes, the same for the same generator."""

import struct

#: lengths and counts at which parsers stumble
_ODD = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
#: where most of an instance's meaning is: its header
_HEADER = 1500


def damaged(data, rng, others=()):
    """Apply one to four kinds of damage, most often one; `others` are spliced in."""
    made = bytearray(data)
    if rng.random() < 0.4:  # as little as can be: most of the rest is refused for its length
        _flip_one(made, rng)
        return bytes(made)
    for _ in range(int(min(rng.geometric(0.6), 4))):
        kind = _KINDS[int(rng.integers(len(_KINDS)))]
        kind(made, rng, others)
    return bytes(made)


def _place(made, rng):
    """Anywhere, and more often in the header."""
    end = min(len(made), _HEADER) if rng.random() < 0.7 else len(made)
    return int(rng.integers(max(end, 1)))


def _flip_one(made, rng):
    if made:
        made[_place(made, rng)] ^= 1 << int(rng.integers(8))


def _flip(made, rng, _others):
    for _ in range(int(rng.integers(1, 9))):
        _flip_one(made, rng)


def _overwrite(made, rng, _others):
    at, n = _place(made, rng), int(rng.integers(1, 33))
    made[at : at + n] = rng.integers(0, 256, min(n, max(len(made) - at, 0)), dtype="u1").tobytes()


def _cut(made, rng, _others):
    del made[_place(made, rng) :]


def _remove(made, rng, _others):
    at = _place(made, rng)
    del made[at : at + int(rng.integers(1, 65))]


def _insert(made, rng, _others):
    at = _place(made, rng)
    made[at:at] = rng.integers(0, 256, int(rng.integers(1, 65)), dtype="u1").tobytes()


def _repeat(made, rng, _others):
    at, n = _place(made, rng), int(rng.integers(1, 129))
    made[at:at] = bytes(made[at : at + n]) * int(rng.integers(1, 9))


def _odd_number(made, rng, _others):
    at, value = _place(made, rng), _ODD[int(rng.integers(len(_ODD)))]
    form = ("<H", ">H", "<L", ">L")[int(rng.integers(4))]
    size = struct.calcsize(form)
    made[at : at + size] = struct.pack(form, value & (256**size - 1))


def _splice(made, rng, others):
    if others:
        other = others[int(rng.integers(len(others)))]
        at, there = _place(made, rng), int(rng.integers(max(len(other), 1)))
        made[at:] = other[there:]


_KINDS = (_flip, _flip, _overwrite, _cut, _remove, _insert, _repeat, _odd_number, _splice)
