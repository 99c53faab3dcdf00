"""R's lazy-load database of a package's data: an index `Rdata.rdx` of places in `Rdata.rdb`, both serialized by R.

Facts: R Internals, sections 1.8 "Serialization Formats" and 1.2 "SEXPTYPEs"; `lazyLoadDBfetch` in R's sources for the
layout of a record (four bytes of its length unpacked, then zlib).
"""

import gzip
import pathlib
import struct
import zlib

from swin_jax.errors import UserError

_SYMBOL, _PAIRLIST, _CHARACTERS, _LOGICALS, _INTEGERS, _STRINGS, _LIST = 1, 2, 9, 10, 13, 16, 19
_NULL, _REFERENCE = 254, 255
_HAS_ATTRIBUTES, _HAS_TAG = 1 << 9, 1 << 10
_LATIN1 = 1 << 2  # of a string's own flags
_ZLIB = 1


class _Reader:
    """Reads R's binary serialization ("X", XDR) of lists, strings and integers, and drops attributes but names."""

    def __init__(self, data: bytes):
        self.data, self.position, self.symbols = data, 0, []
        if self._take(2) != b"X\n":
            raise ValueError("it is not in R's binary XDR format")
        version, _, _ = (self._integer() for _ in range(3))
        if version == 3:
            self._take(self._integer())  # the native encoding of who wrote it
        elif version != 2:
            raise ValueError(f"its serialization version {version} is neither 2 nor 3")

    def item(self):
        """Return the next object: a str, None, a list of str or int, or a dict for a list with names."""
        flags = self._integer()
        kind = flags & 0xFF
        if kind == _NULL:
            return None
        if kind == _REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == _CHARACTERS:
            length = self._integer()  # -1 is R's NA
            return None if length < 0 else self._take(length).decode("latin-1" if flags >> 12 & _LATIN1 else "utf-8")
        if kind == _PAIRLIST:
            return self._pairs(flags)
        if kind in (_INTEGERS, _LOGICALS):
            length = self._integer()
            values = list(struct.unpack(f">{length}i", self._take(4 * length)))
        elif kind in (_STRINGS, _LIST):
            values = [self.item() for _ in range(self._integer())]
        else:
            raise ValueError(f"it holds an object of kind {kind}, which is not read here")
        attributes = self.item() if flags & _HAS_ATTRIBUTES else {}
        return dict(zip(attributes["names"], values, strict=True)) if "names" in attributes else values

    def _pairs(self, flags: int) -> dict:
        pairs = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & _HAS_ATTRIBUTES:
                self.item()
            tag = self.item() if flags & _HAS_TAG else None
            pairs[tag] = self.item()
            flags = self._integer()
        return pairs

    def _take(self, length: int) -> bytes:
        taken = self.data[self.position : self.position + length]
        if length < 0 or len(taken) < length:
            raise ValueError("it is cut short")
        self.position += length
        return taken

    def _integer(self) -> int:
        return struct.unpack(">i", self._take(4))[0]


def read_strings(index: pathlib.Path) -> dict[str, list[str]]:
    """Return the character vectors of the database with this index (the `.rdx` beside its `.rdb`), by name.

    UserError where a file is missing or damaged, or holds something else.
    """
    path = index
    try:
        contents = _Reader(gzip.decompress(index.read_bytes())).item()
        if contents["compressed"] != [_ZLIB]:
            raise ValueError("its records are not packed by zlib")
        path = index.with_suffix(".rdb")
        records = path.read_bytes()
        vectors = {}
        for name, (start, length) in contents["variables"].items():
            (unpacked_length,) = struct.unpack_from(">I", records, start)
            unpacked = zlib.decompress(records[start + 4 : start + length])
            if len(unpacked) != unpacked_length:
                raise ValueError(f"its record {name!r} is cut short")
            vectors[name] = _Reader(unpacked).item()
            if not all(isinstance(line, str) for line in vectors[name]):
                raise ValueError(f"its record {name!r} is no vector of strings")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise UserError(f"cannot read the R database {path}: {error}") from error
    return vectors
