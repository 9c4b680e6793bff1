"""Limits on files from outside: a small file can declare gigabytes of pixels or of inflated bytes."""

from dataclasses import dataclass

from lookalike.values import check_values

MAX_PIXELS = 128_000_000
"""Largest number of pixels of any image; a larger one is refused by its header, before it is decompressed."""


@dataclass(frozen=True)
class Limits:
    """Limits on raw shards and photos. A photo or member that exceeds one is recorded with the reason."""

    max_pixels: int = 64_000_000
    """Pixels of a photo or a mask; decoding takes up to 16 bytes per pixel. At most 128,000,000."""
    max_member_mib: int = 256
    """MiB of a file in a raw shard, which is read into memory whole."""
    max_sample_mib: int = 1024
    """MiB of all files of one sample, which are in memory at once."""
    max_unpacked_mib: int = 65_536
    """MiB of the contents of a compressed raw shard."""
    max_inflation: int = 200
    """Ratio of the contents of a compressed raw shard to its own size; contents of up to 64 MiB are always allowed."""
    max_members: int = 1_000_000
    """Number of files in a raw shard; a shard with more counts as truncated after them."""
    max_header_kib: int = 1024
    """KiB of a tar's extended header (pax) or long name, which is read into memory; the shard ends at a larger one."""
    max_name_characters: int = 1024
    """Characters of a file's name in a raw shard."""

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
        """Return the number of bytes to which a compressed file of ``packed`` bytes may inflate."""
        return min(self.max_unpacked_mib << 20, max(64 << 20, packed * self.max_inflation))
