"""The beginning of a file as text, unpacked, and how much text the whole file will be."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_prep.errors import DataError
from data_prep.files import DAMAGE, open_bytes

_SAMPLE_BYTES = 4 * 2**20
_JUDGED_BYTES = 32 * 2**20
_PACKED = {
    b"\x1f\x8b": ".gz", b"\xfd7zXZ\x00": ".xz", b"BZh": ".bz2", b"\x28\xb5\x2f\xfd": ".zst"
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Text from the beginning of a file."""

    text: str
    whole: bool  # the file ends here
    file_bytes: int  # size of the whole file when unpacked; estimated unless `whole`

    @property
    def scale(self) -> float:
        """How many samples the file is long."""
        return self.file_bytes / max(1, len(self.text.encode()))

    def lines(self) -> list[str]:
        """Complete lines that are not blank."""
        lines = self.text.split("\n")
        if not self.whole and len(lines) > 1:
            lines.pop()
        return [line for line in lines if line.strip()]


def magic(path: Path) -> bytes:
    """The first bytes of a file. DataError when it is missing, empty or unreadable."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a file that holds text")
    try:
        with path.open("rb") as stream:
            first = stream.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not first:
        raise DataError(f"{path} is empty; give a file that holds text")
    return first


def read_sample(path: Path) -> Sample:
    """The first 4 MiB of text. DataError for what is damaged or no UTF-8 text."""
    _check_packing(path)
    size = path.stat().st_size
    try:
        stream, packed = open_bytes(path)
        with packed, stream:
            data = _filled(stream, _SAMPLE_BYTES)
            # How well the rest is packed is judged by more: readers read the file far ahead.
            unpacked = len(data) + len(_filled(stream, _JUDGED_BYTES))
            whole = unpacked == len(data)
            read = packed.tell()
    except (*DAMAGE, OSError) as error:
        raise DataError(f"{path}: damaged or cut short ({error}); fetch or pack it again") from None
    if path.suffix not in _PACKED.values():
        total = size
    else:
        ended = unpacked < _SAMPLE_BYTES + _JUDGED_BYTES
        total = unpacked if ended else round(size * unpacked / read)
    text = _decoded(path, data, whole)
    if not text.strip():
        raise DataError(f"{path} holds nothing but white space; give a file that holds text")
    return Sample(text, whole, total)


def _check_packing(path: Path) -> None:
    """The reader goes by the name, so name and content must agree."""
    first = magic(path)
    found = next((end for start, end in _PACKED.items() if first.startswith(start)), None)
    named = path.suffix if path.suffix in _PACKED.values() else None
    if found != named:
        what = f"its content is {found[1:]}" if found else f"its content is not {path.suffix[1:]}"
        raise DataError(f"{path}: {what}, which the name does not say; rename the file")


def _filled(stream: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes; a single read may give fewer though more follow."""
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _decoded(path: Path, data: bytes, whole: bool) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16; convert it to UTF-8")
    if b"\0" in data:
        raise DataError(f"{path} is binary; expected CSV, JSON lines, Parquet or UTF-8 text")
    try:
        # A character cut at the sample's end is left out, anywhere else it is a mistake.
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, whole)
    except UnicodeDecodeError as error:
        what = f"byte {data[error.start]:#04x} at offset {error.start} is not UTF-8"
        raise DataError(f"{path}: {what}; convert the file to UTF-8") from None
