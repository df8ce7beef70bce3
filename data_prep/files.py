"""Files as streams of bytes: unpacked while reading, cut into blocks of whole lines.

A line longer than `LONGEST_LINE` is passed over without ever being held, so memory stays bounded
whatever a file holds.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .errors import DataError
from .progress import METER

BLOCK_BYTES = 2**19  # small enough for a block and what is made of it to stay in cache
LONGEST_LINE = 2**27  # bytes
_SALVAGED_BYTES = 2**8
_NEWLINE = ord("\n")
_PACKED_BYTES = 2**10  # read at once, so that a bomb unpacks to megabytes and not to gigabytes
PACKED = (".gz", ".bz2", ".xz", ".zst")
try:
    _ISAL: Any = importlib.import_module("isal.igzip")
except ImportError:  # no wheel for this platform: the standard library reads the same, slower
    _ISAL = None
DAMAGE: Any = (  # exception types; Any, because those of isal have no known type
    EOFError,
    lzma.LZMAError,
    zlib.error,
    gzip.BadGzipFile,
    *([_ISAL.isal_zlib.error] if _ISAL else []),
)


class Lines(NamedTuple):
    """Whole lines as they stand in the file, the number of the first (from 1), and where in the
    data each newline is. Only the last line of a file may lack one: then it comes alone."""

    data: bytes
    first: int
    newlines: np.ndarray

    @property
    def total(self) -> int:
        """How many lines."""
        return len(self.newlines) or 1


class TooLong(NamedTuple):
    """A line that was passed over: its number and its length in bytes."""

    number: int
    size: int


def open_bytes(path: Path) -> tuple[IO[bytes], IO[bytes]]:
    """The unpacked bytes of a file, and the file itself, whose position tells how far reading
    has come. DataError when it cannot be opened."""
    try:
        packed = open(path, "rb", buffering=0)
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, expected a file; name the files in it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    unpack: dict[str, Any] = {".gz": _gunzip, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _unzstd}
    return unpack[path.suffix](packed) if path.suffix in unpack else packed, packed


def read_blocks(
    path: Path, start: int = 0, stop: int | None = None, tolerate_damage: bool = False
) -> Iterator[bytes]:
    """The unpacked bytes of a file, block by block.

    `start` and `stop` are offsets in a file that is not packed. DataError when the file is
    damaged or cut short, unless `tolerate_damage`: then what could be unpacked is all there is.
    """
    left = None if stop is None else stop - start
    stream, packed = open_bytes(path)
    with packed, stream:
        if start:
            stream.seek(start)
        done, position = 0, start
        while left is None or left > 0:
            try:
                data = stream.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left))
            except (*DAMAGE, OSError) as error:
                if tolerate_damage:
                    yield from _salvaged(path, done)
                    return
                raise _damaged(path, done, error) from None
            if not data:
                return
            done += len(data)
            left = None if left is None else left - len(data)
            METER.add(packed.tell() - position)
            position = packed.tell()
            yield data


def _salvaged(path: Path, done: int) -> Iterator[bytes]:
    """What a damaged file still gives after `done` unpacked bytes. A read that fails takes with it
    what it had unpacked already, so this goes in small steps."""
    stream, packed = open_bytes(path)
    with packed, stream:
        while done and (skipped := len(stream.read(min(done, BLOCK_BYTES)))):
            done -= skipped
        try:
            # `read1` gives what there is, where `read` would fail for what is not.
            while data := stream.read1(_SALVAGED_BYTES):  # type: ignore[attr-defined]
                yield data
        except (*DAMAGE, OSError):
            return


def read_lines(
    path: Path, start: int = 0, stop: int | None = None, tolerate_damage: bool = False
) -> Iterator[Lines | TooLong]:
    """The lines of a file in blocks; of a byte range, the lines that begin inside it.

    Numbers count from the first line given. A byte order mark at the head of the file is dropped.
    """
    # A range begins one byte early, so that a line that begins exactly at `start` is not lost.
    blocks = _ranged(path, start, stop, tolerate_damage)
    number, pending, size, skipping = 1, [], 0, False
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if not cut:
            size += len(block)
            pending.append(block)
            if size > LONGEST_LINE:
                pending, skipping = [], True
            continue
        if skipping:
            end = block.find(b"\n") + 1
            yield TooLong(number, size + end)
            number, data = number + 1, block[end:cut]
        else:
            data = b"".join([*pending, memoryview(block)[:cut]])
        if data:
            newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)
            yield Lines(data, number, newlines)
            number += len(newlines)
        pending, size, skipping = [block[cut:]], len(block) - cut, False
    if skipping:
        yield TooLong(number, size)
    elif data := b"".join(pending):
        yield Lines(data, number, np.empty(0, np.int64))


def read_whole(path: Path, tolerate_damage: bool = False) -> bytes:
    """All unpacked bytes of a file, without a byte order mark."""
    return b"".join(read_blocks(path, tolerate_damage=tolerate_damage)).removeprefix(
        b"\xef\xbb\xbf"
    )


def read_text(path: Path) -> str:
    """All text of a file; DataError names the place when it is not UTF-8."""
    try:
        return read_whole(path).decode()
    except UnicodeDecodeError as error:
        what = f"byte {error.object[error.start]:#04x} at {error.start} is not UTF-8"
        raise DataError(f"{path}: {what}; convert the file to UTF-8") from None


def _ranged(path: Path, start: int, stop: int | None, tolerate: bool) -> Iterator[bytes]:
    """Blocks from the first line that begins at or after `start` to the end of the last that
    begins before `stop`."""
    blocks = read_blocks(path, max(0, start - 1), stop, tolerate)
    first, last = b"", b"\n"
    for first in blocks:
        if start:
            at = first.find(b"\n") + 1
            if not at:
                continue
            first = first[at:]
        else:
            first = first.removeprefix(b"\xef\xbb\xbf")
        break
    else:
        return
    yield first
    last = first[-1:] or last
    for block in blocks:
        yield block
        last = block[-1:]
    if stop is None or last == b"\n":
        return
    for block in read_blocks(path, stop, None, tolerate):
        at = block.find(b"\n") + 1
        yield block[:at] if at else block
        if at:
            return


def _gunzip(packed: IO[bytes]) -> IO[bytes]:
    return _ISAL.IGzipFile(fileobj=packed) if _ISAL else gzip.open(packed)  # type: ignore[return-value]


def _unzstd(packed: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_ZstdFrames(packed), BLOCK_BYTES)  # type: ignore[return-value]


class _ZstdFrames(io.RawIOBase):
    """The frames of a zstd file one after another; the library's own reader ends in silence where
    a file was cut off."""

    def __init__(self, packed: IO[bytes]) -> None:
        import zstandard

        self._library = zstandard
        self._file = packed
        self._packed = b""
        self._unpacked = memoryview(b"")  # a view: cutting off what was read copies nothing
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._unpacked:
            if not self._packed:
                self._packed = self._file.read(_PACKED_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last frame is not whole")
                return 0
            self._unpack()
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count

    def _unpack(self) -> None:
        self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
        try:
            self._unpacked = memoryview(self._frame.decompress(self._packed))
        except self._library.ZstdError as error:
            raise EOFError(str(error)) from None
        self._packed = self._frame.unused_data
        if self._frame.eof:
            self._frame = None


def _damaged(path: Path, done: int, error: Exception) -> DataError:
    what = f"damaged or cut short after {done:,} unpacked bytes ({error})"
    hint = "fetch or pack it again, or set data.allow_truncated=true to keep the good part"
    return DataError(f"{path}: {what}; {hint}")
