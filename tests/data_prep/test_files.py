from __future__ import annotations

import base64
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from conftest import PACKS, run
from hypothesis import given
from hypothesis import strategies as st

from data_prep import files
from data_prep.errors import DataError
from data_prep.files import Lines, TooLong, read_blocks, read_lines, read_text, read_whole

# Hardly compressible, and more than two blocks of bzip2.
RAW = b"\n".join(base64.b64encode(random.Random(n).randbytes(57)) for n in range(30_000)) + b"\n"
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module", params=PACKS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / f"a{request.param}"
    path.write_bytes(PACKS[request.param](RAW))
    return path


def unpacked(path: Path, tolerate_damage: bool = False) -> bytes:
    return b"".join(read_blocks(path, tolerate_damage=tolerate_damage))


def test_packed_files_are_unpacked(packed: Path) -> None:
    assert unpacked(packed) == RAW


@pytest.mark.parametrize("suffix", PACKS)
def test_members_one_after_another_are_one_file(tmp_path: Path, suffix: str) -> None:
    path, pack = tmp_path / f"a{suffix}", PACKS[suffix]
    path.write_bytes(pack(RAW) + pack(b"") + pack(b"and more"))
    assert unpacked(path) == RAW + b"and more"


def test_gzip_may_be_padded_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(PACKS[".gz"](b"text") + bytes(512))
    assert unpacked(path) == b"text"


def test_zstd_may_hold_frames_to_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    path.write_bytes(skipped + PACKS[".zst"](b"one ") + skipped + PACKS[".zst"](b"two"))
    assert unpacked(path) == b"one two"


def test_gzip_is_read_where_isal_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "isal.igzip", None)
    path = tmp_path / "a.gz"
    path.write_bytes(PACKS[".gz"](b"text"))
    assert unpacked(path) == b"text"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged or cut short"):
        unpacked(path)


def _flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 16]) + raw[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in the middle": lambda raw: raw[: len(raw) * 2 // 3],
    "cut in the head": lambda raw: raw[:4],
    "cut before the last byte": lambda raw: raw[:-1],
    "a flipped bit": _flipped,
    "another file": lambda raw: b"neither packed nor anything " * 4,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(packed: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / packed.name
    path.write_bytes(DAMAGES[damage](packed.read_bytes()))
    with pytest.raises(DataError, match="damaged or cut short after [0-9,]+ unpacked") as caught:
        unpacked(path)
    assert str(caught.value).startswith(str(path)) and "allow_truncated" in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_part_before_the_damage_can_be_kept(packed: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / packed.name
    path.write_bytes(DAMAGES[damage](packed.read_bytes()))
    found = unpacked(path, tolerate_damage=True)
    # The unit of bzip2 and xz is a block, of which a damaged one gives nothing.
    least = {"cut before the last byte": 890_000, "cut in the middle": 890_000}.get(damage, 0)
    assert len(found) >= least
    if damage != "a flipped bit":  # gzip sees it in the checksum at the end only
        assert RAW.startswith(found)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
def test_little_text_before_the_damage_is_kept_too(tmp_path: Path, suffix: str) -> None:
    raw = RAW[:300_000]  # less than a block
    path = tmp_path / f"a{suffix}"
    packed = PACKS[suffix](raw)
    path.write_bytes(packed[: len(packed) * 9 // 10])
    found = unpacked(path, tolerate_damage=True)
    assert len(found) >= 130_000 and raw.startswith(found)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, expected a file"):
        unpacked(tmp_path)
    with pytest.raises(DataError, match="absent.gz: cannot be read .No such file"):
        unpacked(tmp_path / "absent.gz")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(BOM + "é".encode())
    assert (read_whole(path), read_text(path)) == ("é".encode(), "é")
    path.write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="byte 0xff at 3 is not UTF-8"):
        read_text(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines") / "a"


lines_of_text = st.lists(st.text("ab\r\u2028", max_size=12).map(str.encode), max_size=12)


def written(path: Path, lines: list[bytes], ended: bool) -> list[bytes]:
    """Write lines; returns them with their ends, as they stand in the file."""
    whole = [line + b"\n" for line in lines]
    if whole and not ended:
        whole[-1] = whole[-1][:-1]
    path.write_bytes(b"".join(whole))
    return [line for line in whole if line]


def numbered(found: list[Lines | TooLong]) -> list[tuple[int, bytes]]:
    """Each line with its number, as the blocks tell it."""
    lines = []
    for block in found:
        assert isinstance(block, Lines)
        split = block.data.splitlines(keepends=True) if b"\r" not in block.data else None
        split = split or [part + b"\n" for part in block.data.split(b"\n")]
        if not block.data.endswith(b"\n"):
            split[-1] = split[-1].removesuffix(b"\n")
        split = [line for line in split[: block.total] if line]
        assert len(split) == block.total and b"".join(split) == block.data
        lines += list(enumerate(split, block.first))
    return lines


@given(lines_of_text, st.booleans(), st.integers(1, 9), st.booleans())
def test_lines(file: Path, lines: list[bytes], ended: bool, block: int, bom: bool) -> None:
    expected = written(file, lines, ended)
    if bom and block >= len(BOM):
        file.write_bytes(BOM + file.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block)
        assert numbered(list(read_lines(file))) == list(enumerate(expected, 1))


@given(lines_of_text, st.booleans(), st.integers(1, 9), st.lists(st.integers(0, 160), max_size=4))
def test_ranges_have_each_line_once(
    file: Path, lines: list[bytes], ended: bool, block: int, cuts: list[int]
) -> None:
    expected = written(file, lines, ended)
    size = file.stat().st_size
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < size}), size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block)
        found: list[tuple[int, bytes]] = []
        for start, stop in zip(edges, edges[1:], strict=False):
            mine = numbered(list(read_lines(file, start, stop)))
            assert [number for number, _ in mine] == list(range(1, len(mine) + 1))
            found += [(len(found) + number, line) for number, line in mine]
    assert found == list(enumerate(expected, 1))


@given(st.lists(st.integers(0, 60), max_size=8), st.booleans(), st.integers(1, 9))
def test_long_lines_are_passed_over(file: Path, sizes: list[int], ended: bool, block: int) -> None:
    lines = written(file, [b"x" * size for size in sizes], ended)
    longest, found = 20, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block)
        patch.setattr(files, "LONGEST_LINE", longest)
        for part in read_lines(file):
            if isinstance(part, TooLong):
                found[part.number] = part.size
                # Whether the limit is met is seen where a block ends.
                assert len(lines[part.number - 1]) > longest
                assert part.size == len(lines[part.number - 1])
            else:
                whole = lines[part.first - 1 : part.first - 1 + part.total]
                assert b"".join(whole) == part.data
                found |= dict.fromkeys(range(part.first, part.first + part.total), 0)
    assert sorted(found) == list(range(1, len(lines) + 1))
    assert all(found[n] for n, line in enumerate(lines, 1) if len(line) > longest + block + 1)


# Not `ru_maxrss`: what a process inherits from the one that started it counts there.
MEASURE = """
import re, sys
from pathlib import Path
from data_prep.files import read_lines
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
print(*read_lines(Path(sys.argv[1])), sep="\\n")
grown = peak() - before
sys.exit(f"grown by {grown / 1000:.0f} MB" if grown > 250_000 else 0)
"""


@pytest.mark.parametrize("suffix", PACKS)
def test_bombs_stay_in_memory(tmp_path: Path, suffix: str) -> None:
    path, size = tmp_path / f"bomb{suffix}", 200_000_000
    if suffix == ".zst":
        path.write_bytes(zstandard.ZstdCompressor().compress(bytes(size)))
    else:  # members of a tenth, one after another
        path.write_bytes(PACKS[suffix](bytes(size // 20)) * 20)
    assert path.stat().st_size < 4_000_000
    code, output = run("-c", MEASURE, str(path))
    assert (code, output) == (0, f"TooLong(number=1, size={size})\n")
