"""What an erasure covers, as lines for people."""

from collections.abc import Iterator

from pipelines.erase.state import Inventory


def lines(inventory: Inventory) -> Iterator[str]:
    """The inventory as a table, with what the operator has to do."""
    for kind, (count, size) in inventory.kinds.items():
        yield f"{count:9} {kind} ({size / 1e6:.1f} MB)"
    yield f"{inventory.photos:9} photos by content"
    for kind, count in inventory.tracked.counts.items():
        yield f"{count:9} {kind.replace('_', ' ')} in MLflow"
    for output in inventory.outputs:
        yield f"{output.objects:9} {output.kind} ({output.size / 1e6:.1f} MB) at {output.uri}"
    for folder, (count, size) in inventory.requests.items():
        yield f"{count:9} requests and records of them ({size / 1e6:.1f} MB) in {folder}"
    for holder in inventory.holders:
        yield f"{holder.images:9} photos in the shared data set {holder.dataset} v{holder.version:04d}: taken down"
    for learned in inventory.learned:
        yield f"  learned from it, and stays: {learned.run}; to train it anew: {learned.anew}"
    for place in inventory.unclear:
        yield f"  names it, and is not removed by this job: {place}; look at it, and remove it by hand"
    if inventory.unreadable:
        yield f"{inventory.unreadable:9} damaged tables or shards, whose photos are not listed"
