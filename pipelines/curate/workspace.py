"""Where the objects of a curation lie. Only this module builds their keys, and those of a snapshot's files.

Keys below ``work/`` follow from what an object depends on, so that an object that exists is done: index results from
the raw shard and the settings that read it, results of later stages from the fingerprint of all inputs.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from lookalike.config import fingerprint
from lookalike.storage import ObjectInfo

_WORK = "work"
LEASE = f"{_WORK}/lease"
CHANGED = f"{_WORK}/changed"
_TAKE_DOWN_LISTS = f"{_WORK}/taken-down"
INDEX_PREFIXES = (f"{_WORK}/rows/", f"{_WORK}/vectors/")

# Files of a version, below its own prefix.
CLAIM = "claim.json"
IMAGES_TABLE = "images.parquet"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
TAKEN_DOWN_JSON = "taken_down.json"

PlanTable = Literal["images", "subjects"]
DuplicateOrder = Literal["subject_hash", "unit"]


def shard_id(info: ObjectInfo) -> str:
    """Return the id of a raw shard's results, 24 hex digits. It follows from the shard's key, size and ETag."""
    return fingerprint([info.key, info.size, info.etag])[:24]


def change_mark(shard: str) -> str:
    """Return the key of the mark of a raw shard (by its id) that changed after it was indexed."""
    return f"{CHANGED}/{shard}"


def take_down_list(sha256: str) -> str:
    """Return the key of the copy of a take-down list, by the hash of its bytes."""
    return f"{_TAKE_DOWN_LISTS}/{sha256}.txt"


def take_down_hash(key: str) -> str:
    """Return the hash that a key of :func:`take_down_list` is made of."""
    return PurePosixPath(key).stem


def triplet_shard(split: str, number: int) -> str:
    """Return the key of a triplet shard below its version's prefix."""
    return f"shards/{split}-{number:06d}.tar"


@dataclass(frozen=True)
class Workspace:
    """The keys of one curation's objects below the dataset's prefix. ``shard`` is the number of a raw shard."""

    shards: tuple[ObjectInfo, ...]
    index: str
    """Identity of the settings that decide about image rows and their order."""
    index_revision: int
    """Revision of the index stage."""
    embedder: str
    """Revision of the embedder."""
    run: str
    """Fingerprint of all inputs."""

    def rows(self, shard: int) -> str:
        """The image rows of a raw shard, as the index wrote them."""
        return f"{_WORK}/rows/{self.index}/{shard_id(self.shards[shard])}.parquet"

    def vectors(self, shard: int) -> str:
        """The embeddings of a raw shard, as the index wrote them."""
        revision = fingerprint(self.embedder)[:16]
        return f"{_WORK}/vectors/{self.index}-{revision}/{shard_id(self.shards[shard])}.parquet"

    def unpacked(self, shard: int) -> str:
        """The tar inside a compressed raw shard."""
        return f"{_WORK}/unpacked/{self.index_revision}-{shard_id(self.shards[shard])}.tar"

    def answers(self, revision: str, shard: int) -> str:
        """What the model of that revision said of a raw shard's images, by content, under any labels and filters."""
        return f"{_WORK}/answers/{fingerprint(revision)[:16]}/{shard_id(self.shards[shard])}.parquet"

    def centroids(self) -> str:
        """The centroids of all cells of :mod:`pipelines.curate.cluster_subjects`."""
        return self._of_run("found", "centroids.parquet")

    def assigned(self) -> str:
        """The prefix of the shuffle of unlabelled photos by cell."""
        return self._of_run("assigned", "by-cell")

    def cell_subjects(self) -> str:
        """The prefix of the shuffle of the subjects that were found, by group of raw shards."""
        return self._of_run("assigned", "by-shards")

    def found(self, kind: Literal["rows", "vectors"], shard: int) -> str:
        """The rows or vectors of a raw shard, with the subjects that were found."""
        return self._of_run("found", f"{kind}/{shard:06d}.parquet")

    def take_down_contents(self, shard: int) -> str:
        """The content hashes of a raw shard's images that the take-down list names."""
        return self._of_run("taken-down", f"contents/{shard:06d}.txt")

    def reasons(self, shard: int) -> str:
        """The reasons of the screen, beside the image rows of a raw shard."""
        return self._of_run("screen", f"{shard:06d}.parquet")

    def duplicates(self, partition: int, order: DuplicateOrder) -> str:
        """The repeated images of a range of content hashes, sorted by subject hash or by raw shard."""
        return self._of_run("duplicates", f"part-{partition:05d}.{order}.parquet")

    def links(self, unit: int) -> str:
        """The linked subjects that one task has found."""
        return self._of_run("links", f"part-{unit:05d}.parquet")

    def components(self) -> str:
        """The component of each linked subject."""
        return self._of_run("links", "components.parquet")

    def scores(self, revision: str, shard: int) -> str:
        """The scores of a raw shard's images by the model of that revision."""
        return self._of_run("scores", f"{fingerprint(revision)[:16]}/{shard:06d}.parquet")

    def plan(self, partition: int, table: PlanTable) -> str:
        """A table of the plan of a range of subjects."""
        return self._of_run("plan", f"part-{partition:05d}.{table}.parquet")

    def summary(self, partition: int) -> str:
        """The summary of the plan of a range of subjects, which is written after its tables."""
        return self._of_run("plan", f"part-{partition:05d}.summary.json")

    def part(self, version: str, shard: str, suffix: Literal["parquet", "json"]) -> str:
        """The triplet table, or the hash (written last), of triplet shard ``shard`` of a version."""
        return self._of_run("materialise", f"{version}-{PurePosixPath(shard).stem}.{suffix}")

    def prefix(self, stage: Literal["assigned", "found", "scores"]) -> str:
        """The prefix of all objects of one of these methods."""
        return self._of_run(stage, "")

    def _of_run(self, stage: str, name: str) -> str:
        return f"{_WORK}/{stage}/{self.run[:16]}/{name}"
