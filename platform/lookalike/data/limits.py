"""Limits on files from outside: a small file can declare gigabytes of pixels or of inflated bytes."""

from typing import Annotated

from annotated_types import Le

from lookalike.values import Count, Mib, configuration

MAX_PIXELS = 128_000_000
"""Largest number of pixels of any image; a larger one is refused by its header, before it is decompressed."""


@configuration("limits")
class Limits:
    """Limits on raw shards and photos. A photo or member that exceeds one is recorded with the reason."""

    max_pixels: Annotated[Count, Le(MAX_PIXELS)] = 64_000_000
    """Pixels of a photo or a mask; decoding takes up to 16 bytes per pixel. At most 128,000,000."""
    max_member_mib: Mib = 256
    """MiB of a file in a raw shard, which is read into memory whole."""
    max_sample_mib: Mib = 1024
    """MiB of all files of one sample, which are in memory at once."""
    max_unpacked_mib: Annotated[Count, Le(1 << 30)] = 65_536
    """MiB of the contents of a compressed raw shard."""
    max_inflation: Annotated[Count, Le(1_000_000)] = 200
    """Ratio of the contents of a compressed raw shard to its own size; contents of up to 64 MiB are always allowed."""
    max_members: Annotated[Count, Le(100_000_000)] = 1_000_000
    """Number of files in a raw shard; a shard with more counts as truncated after them."""
    max_header_kib: Annotated[Count, Le(1 << 20)] = 1024
    """KiB of a tar's extended header (pax) or long name, which is read into memory; the shard ends at a larger one."""
    max_name_characters: Annotated[Count, Le(1 << 20)] = 1024
    """Characters of a file's name in a raw shard."""

    def unpacked_bytes(self, packed: int) -> int:
        """Return the number of bytes to which a compressed file of ``packed`` bytes may inflate."""
        return min(self.max_unpacked_mib << 20, max(64 << 20, packed * self.max_inflation))
