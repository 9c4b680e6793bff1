"""How much one file from outside may ask for: small files can name gigabytes of pixels or of inflated bytes."""

from dataclasses import dataclass

from lookalike.errors import ConfigError
from lookalike.values import check_most, check_values

MAX_PIXELS = 128_000_000
"""Of any image, wherever it is read; a larger one is refused by its header, before anything is decompressed."""


@dataclass(frozen=True)
class Limits:
    """Bounds on raw shards and photos. What exceeds one is a row, or a name passed over, with the reason."""

    max_pixels: int = 64_000_000
    """Of a photo or a mask; decoding takes up to 16 bytes for each. At most 128,000,000."""
    max_member_mib: int = 256
    """Of a file in a raw shard: it is read into memory whole."""
    max_unpacked_mib: int = 65_536
    """Of what is in a compressed raw shard."""
    max_inflation: int = 200
    """Times the size of the compressed raw shard that what is in it may have; 64 MiB are always allowed."""

    def __post_init__(self) -> None:
        check_values(self)
        check_most(self, max_member_mib=65_536, max_unpacked_mib=1 << 30, max_inflation=1_000_000)
        for name in ("max_pixels", "max_member_mib", "max_unpacked_mib", "max_inflation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"limits.{name} is below 1", value=getattr(self, name), fix="use 1 or more")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError("limits.max_pixels is too large", value=self.max_pixels, fix=f"use at most {MAX_PIXELS}")

    def unpacked_bytes(self, packed: int) -> int:
        """Bytes to which a compressed file of ``packed`` bytes may inflate."""
        return min(self.max_unpacked_mib << 20, max(64 << 20, packed * self.max_inflation))
