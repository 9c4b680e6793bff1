"""Small files that declare gigabytes are refused with little memory."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lookalike.data.archive import read_entries
from lookalike.data.limits import MAX_PIXELS, Limits
from lookalike.data.passed_over import PassedOver
from lookalike.data.shards import BrokenTarError, iter_samples
from lookalike.errors import ConfigError

_PEAK_OF = """
import resource, sys
from lookalike.data.images import decode_noted
from lookalike.errors import InputError
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_noted(data, 256, int(sys.argv[2]))
    print("decoded", end=" ")
except InputError as error:
    print(error.what.split(" (")[0].replace(" ", "_"), end=" ")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def peak_of(file: Path, max_pixels: int) -> tuple[str, int]:
    """Read a photo in a new process; return the result and the MiB that this adds to its memory."""
    command = [sys.executable, "-c", _PEAK_OF, str(file), str(max_pixels)]
    what, mib = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    return what, int(mib)


def png(width: int, height: int, colour: int, bits: int) -> bytes:
    """A small PNG file with many pixels, all zero."""
    import struct
    import zlib

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    packer, row = zlib.compressobj(9), bytes(1 + width * channels * bits // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "bits"), [(6, 8), (0, 16)], ids=["rgba", "grey16"])
def test_memory_of_a_photo_is_bounded_by_its_pixels(colour: int, bits: int, tmp_path: Path) -> None:
    side = 3000
    file = tmp_path / "bomb.png"
    file.write_bytes(png(side, side, colour, bits))
    assert file.stat().st_size < 200_000
    what, mib = peak_of(file, side * side - 1)
    assert what == "too_many_pixels"
    assert mib < 20
    what, mib = peak_of(file, side * side)
    assert what == "decoded"
    assert mib << 20 < 16 * side * side  # bytes of a pixel


def tar_of(*members: tuple[str, int], form: int = tarfile.PAX_FORMAT) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    file.seek(0)
    return file


def test_member_that_is_too_large_is_passed_over() -> None:
    tally = PassedOver()
    file = tar_of(("a.jpg", (1 << 20) + 1), ("a.json", 2), ("b.jpg", 1 << 20))
    samples = [(sample.key, set(payload)) for sample, payload in iter_samples(file, tally, Limits(max_member_mib=1))]
    assert samples == [("a", {"json"}), ("b", {"jpg"})]
    assert tally.to_json()["reasons"] == {"too_large": {"count": 1, "examples": ["a.jpg"]}}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_header_of_megabytes_is_refused(form: int) -> None:
    file = tar_of(("k" * (2 << 20) + ".jpg", 4), form=form)
    with pytest.raises(tarfile.ReadError, match=r"a header has 20971.. bytes, but limits.max_header_kib is 1024"):
        list(read_entries(file))


def test_header_that_declares_gigabytes_is_not_read() -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    with pytest.raises(tarfile.ReadError, match="a header has 3221225472 bytes"):
        list(read_entries(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_name_is_passed_over(form: int) -> None:
    tally = PassedOver()
    file = tar_of(("k" * 5000 + ".jpg", 4), ("b.jpg", 4), form=form)
    assert [sample.key for sample, _ in iter_samples(file, tally)] == ["b"]
    assert tally.counts == {"long_name": 1}
    file.seek(0)
    assert len(list(iter_samples(file, limits=Limits(max_name_characters=6000)))) == 2


def test_size_of_a_sample_is_bounded() -> None:
    tally, mib = PassedOver(), 1 << 20
    file = tar_of(*((f"a.part{number}", mib) for number in range(5)), ("b.jpg", mib), ("b.jpg", mib), ("b.jpg", mib))
    samples = list(iter_samples(file, tally, Limits(max_sample_mib=2)))
    assert [(sample.key, sorted(payload)) for sample, payload in samples] == [
        ("a", ["part0", "part1"]), *[("b", ["jpg"])] * 3,
    ]  # fmt: skip
    assert tally.counts == {"too_large": 3}
    assert tally.found == 8


def test_shard_ends_at_its_limit_of_members() -> None:
    file = tar_of(*((f"{number}.jpg", 1) for number in range(5)))
    read = []
    with pytest.raises(BrokenTarError, match="more than the 3 files that limits"):
        read += iter_samples(file, limits=Limits(max_members=3))
    assert len(list(read_entries(file, Limits(max_members=5)))) == 5


@pytest.mark.parametrize(
    "values",
    [{"max_pixels": MAX_PIXELS + 1}, {"max_pixels": 0}, {"max_member_mib": 0}, {"max_inflation": 0}],
    ids=str,
)
def test_limits_are_validated(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="limits"):
        Limits(**values)
