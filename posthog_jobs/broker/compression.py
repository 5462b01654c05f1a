"""Compressed bodies, which are unpacked up to a limit: ten kilobytes may hold a gigabyte."""

from __future__ import annotations

import bz2
import lzma
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

#: The largest body that a message may hold in compressed form, in bytes.
MAX_INFLATED: Final = 64 * 1024 * 1024


class _Inflater(Protocol):
    """What `zlib`, `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool:
        """Whether the end of the data was reached."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return what was compressed, up to a length."""


#: Such data says how much memory its reader shall set aside; as much as its highest level needs.
_LZMA: Final = partial(lzma.LZMADecompressor, memlimit=2 * MAX_INFLATED)

#: The names that `task_compression` and message headers have for them, in kombu.
_INFLATERS: Final[dict[str, Callable[[], _Inflater]]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), zlib.decompressobj),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), _LZMA),
}


def inflate(data: bytes, compression: object) -> bytes:
    """Return a body as it was before it was compressed.

    Args:
        data: the compressed body.
        compression: what the message says that it is compressed with.

    Raises:
        ValueError: it is none of those above, the data is not of it, or holds too much.
    """
    make = _INFLATERS.get(compression) if isinstance(compression, str) else None
    if make is None:
        raise ValueError(
            "the body is compressed with what we do not unpack; set task_compression to gzip, "
            "bzip2 or lzma"
        )
    inflater = make()
    try:
        body = inflater.decompress(data, MAX_INFLATED + 1)
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"the body is not compressed as it says: {error}") from None
    if len(body) > MAX_INFLATED or not inflater.eof:
        raise ValueError(f"the compressed body is cut off, or holds over {MAX_INFLATED} bytes")
    return body
