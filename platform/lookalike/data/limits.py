"""How much one file from outside may ask for: small files can name gigabytes of pixels or of inflated bytes."""

from dataclasses import dataclass

from lookalike.values import check_values

MAX_PIXELS = 128_000_000
"""Of any image, wherever it is read; a larger one is refused by its header, before anything is decompressed."""


@dataclass(frozen=True)
class Limits:
    """Bounds on raw shards and photos. What exceeds one is a row, or a name passed over, with the reason."""

    max_pixels: int = 64_000_000
    """Of a photo or a mask; decoding takes up to 16 bytes for each. At most 128,000,000."""
    max_member_mib: int = 256
    """Of a file in a raw shard: it is read into memory whole."""
    max_sample_mib: int = 1024
    """Of all files of one sample together: they are in memory at once."""
    max_unpacked_mib: int = 65_536
    """Of what is in a compressed raw shard."""
    max_inflation: int = 200
    """Times the size of the compressed raw shard that what is in it may have; 64 MiB are always allowed."""
    max_members: int = 1_000_000
    """Of files in a raw shard; what stands behind them is lost as behind a break."""
    max_header_kib: int = 1024
    """Of a tar's extended header (pax) or long name, which is read into memory; a larger one ends the shard."""
    max_name_characters: int = 1024
    """Of a file's name in a raw shard."""

    def __post_init__(self) -> None:
        check_values(
            self,
            at="limits.",
            max_pixels=(1, MAX_PIXELS),
            max_member_mib=(1, 65_536),
            max_sample_mib=(1, 65_536),
            max_unpacked_mib=(1, 1 << 30),
            max_inflation=(1, 1_000_000),
            max_members=(1, 100_000_000),
            max_header_kib=(1, 1 << 20),
            max_name_characters=(1, 1 << 20),
        )

    def unpacked_bytes(self, packed: int) -> int:
        """Bytes to which a compressed file of ``packed`` bytes may inflate."""
        return min(self.max_unpacked_mib << 20, max(64 << 20, packed * self.max_inflation))
