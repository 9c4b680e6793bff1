"""Where the objects of a curation lie. Only this module builds their keys, and those of a snapshot's files.

Keys below ``work/`` follow from what an object depends on, so that an object that exists is done: index results from
the raw shard and the settings that read it, results of later stages from the raw shards and the settings that decide
about them (:attr:`pipelines.curate.inputs.Inputs.stages`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from lookalike.config import fingerprint
from lookalike.data.part_lists import Kind
from lookalike.storage import ObjectInfo

_WORK = "work"
WORK_PREFIX = f"{_WORK}/"
COLLECTION = f"{_WORK}/collection.json"
PACKS_PREFIX = "shards/"
PACK = re.compile(rf"{PACKS_PREFIX}[0-9a-f]{{64}}\.tar")

# Keys of the methods below: results of the index, answers (the group is the id of their raw shard), copies of take-down
# lists, and results of a stage, whose first three segments are the prefix of its inputs.
OF_INDEX = re.compile(
    rf"{_WORK}/(?:rows|vectors)/[^/]+/[0-9a-f]{{24}}\.parquet|{_WORK}/unpacked/\d+-[0-9a-f]{{24}}\.tar"
)
OF_ANSWERS = re.compile(rf"{_WORK}/answers/[0-9a-f]{{16}}/([0-9a-f]{{24}})(?:\.parquet|/\d+\.parquet)")
OF_TAKE_DOWN_LISTS = re.compile(rf"{_WORK}/taken-down/[0-9a-f]{{64}}\.txt")
OF_STAGE = re.compile(rf"{_WORK}/(?!answers/|rows/|vectors/|unpacked/)[a-z0-9_-]+/[0-9a-f]{{16}}/.+", re.DOTALL)
LEASE = f"{_WORK}/lease"
CHANGED = f"{_WORK}/changed"
_TAKE_DOWN_LISTS = f"{_WORK}/taken-down"

# Files of a version, below its own prefix.
CLAIM = "claim.json"
FORMAT_1_TABLES = {"images": "images.parquet", **dict.fromkeys(("train", "validation"), "triplets.parquet")}
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
TAKEN_DOWN_JSON = "taken_down.json"

PlanTable = Literal["images", "subjects"]
ShuffleName = Literal["subjects", "contents", "bands", "repeated", "repeated_of_shards", "requests", "ends"]
"""The shuffles of the row stages (:meth:`pipelines.curate.work.StageWork.shuffle` describes them)."""
_WRITER: dict[ShuffleName, str] = {
    "subjects": "gather", "contents": "gather", "bands": "gather", "repeated": "duplicates",
    "repeated_of_shards": "duplicates", "requests": "links", "ends": "links",
}  # fmt: skip


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


def pack(sha256: str) -> str:
    """Return the key of a pack of images below the dataset's prefix, by the hash of its bytes."""
    return f"shards/{sha256}.tar"


def pack_hash(key: str) -> str:
    """Return the hash that a key of :func:`pack` is made of."""
    return PurePosixPath(key).stem


def part_of(kind: Kind, unit: int) -> str:
    """Return the key of the part of a table that a unit of materialise writes, below its version's prefix."""
    return f"images/part-{unit:06d}.parquet" if kind == "images" else f"triplets/{kind}-{unit:06d}.parquet"


def exported(split: str, number: int) -> str:
    """Return the key of a shard of an export below its output's prefix."""
    return f"{split}-{number:06d}.tar"


@dataclass(frozen=True)
class Workspace:
    """The keys of one curation's objects below the dataset's prefix.

    ``shard`` is the id of a raw shard (:func:`shard_id`), ``number`` its number in the order of their keys.
    """

    index: str
    """Identity of the settings that decide about image rows and their order."""
    index_revision: int
    """Revision of the index stage."""
    embedder: str
    """Revision of the embedder."""
    stages: Mapping[str, str]
    """Fingerprint of what the results of each stage after the index depend on."""

    @property
    def index_prefixes(self) -> tuple[str, str]:
        """The prefixes of the objects of :meth:`rows` and :meth:`vectors`."""
        return f"{_WORK}/rows/{self.index}/", f"{_WORK}/vectors/{self.index}-{fingerprint(self.embedder)[:16]}/"

    def rows(self, shard: str) -> str:
        """The image rows of a raw shard, as the index wrote them."""
        return f"{self.index_prefixes[0]}{shard}.parquet"

    def vectors(self, shard: str) -> str:
        """The embeddings of a raw shard, as the index wrote them."""
        return f"{self.index_prefixes[1]}{shard}.parquet"

    def unpacked(self, shard: str) -> str:
        """The tar inside a compressed raw shard."""
        return f"{_WORK}/unpacked/{self.index_revision}-{shard}.tar"

    def answers(self, model: str, shard: str) -> str:
        """What a model, by its identity, has said of a raw shard's images, by content, under any labels and filters."""
        return f"{self.answers_prefix(model, shard)}.parquet"

    def answers_part(self, model: str, shard: str, part: int) -> str:
        """Some of these answers, while a run asks for them."""
        return f"{self.answers_prefix(model, shard)}/{part:06d}.parquet"

    def answers_prefix(self, model: str, shard: str) -> str:
        """The common prefix of these keys; no other key has it."""
        return f"{_WORK}/answers/{fingerprint(model)[:16]}/{shard}"

    @staticmethod
    def part_of_answers(key: str) -> int:
        """Return the part's number that a key of :meth:`answers_part` is made of."""
        return int(PurePosixPath(key).stem)

    def centroids(self) -> str:
        """The centroids of all cells of :mod:`pipelines.curate.cluster_subjects`."""
        return self._of_run("found", "centroids.parquet")

    def assigned(self) -> str:
        """The prefix of the shuffle of unlabelled photos by cell."""
        return self._of_run("assigned", "by-cell")

    def cell_subjects(self) -> str:
        """The prefix of the shuffle of the subjects that were found, by group of raw shards."""
        return self._of_run("assigned", "by-shards")

    def found(self, kind: Literal["rows", "vectors"], number: int) -> str:
        """The rows or vectors of a raw shard, with the subjects that were found."""
        return self._of_run("found", f"{kind}/{number:06d}.parquet")

    def take_down_contents(self, group: int) -> str:
        """The content hashes of the images of a group of raw shards that the take-down list names."""
        return self._of_run("taken-down", f"contents/{group:06d}.sha256s")

    def take_down_counts(self, group: int) -> str:
        """The numbers of these images by entry of the list; written after their content hashes."""
        return self._of_run("taken-down", f"counts/{group:06d}.parquet")

    def gathered(self, group: int) -> str:
        """The counts of a group of raw shards, written when its rows are in all shuffles."""
        return self._of_run("gather", f"{group:06d}.json")

    def shuffle(self, name: ShuffleName) -> str:
        """The prefix of a shuffle of the row stages."""
        return self._of_run(_WRITER[name], name)

    def candidates(self, partition: int) -> str:
        """What is known about the candidates of a range of keys of near copies, once they are requested."""
        return self._of_run("links", f"candidates-{partition:05d}.json")

    def sharing(self, partition: int) -> str:
        """The subjects that share an image of a range of contents."""
        return self._of_run("duplicates", f"sharing-{partition:05d}.parquet")

    def resembling(self, partition: int) -> str:
        """The subjects that share a near copy of an image, of a range of pairs."""
        return self._of_run("links", f"resembling-{partition:05d}.parquet")

    def joined(self, level: int, unit: int) -> str:
        """The links of up to 128 tables of the level before, joined."""
        return self._of_run("links", f"joined-{level}/{unit:05d}.parquet")

    def components(self) -> str:
        """The component of each linked subject."""
        return self._of_run("links", "components.parquet")

    def scores(self, revision: str, number: int) -> str:
        """The scores of a raw shard's images by the model of that revision."""
        return self._of_run("scores", f"{fingerprint(revision)[:16]}/{number:06d}.parquet")

    def score_shuffle(self, revision: str) -> str:
        """The prefix of the shuffle of the scores by the model of that revision."""
        return self._of_run("scores", f"{fingerprint(revision)[:16]}/by-subject")

    def plan(self, partition: int, table: PlanTable) -> str:
        """A table of the plan of a range of subjects."""
        return self._of_run("plan", f"part-{partition:05d}.{table}.parquet")

    def summary(self, partition: int) -> str:
        """The summary of the plan of a range of subjects, which is written after its tables."""
        return self._of_run("plan", f"part-{partition:05d}.summary.json")

    def layout(self, partition: int) -> str:
        """Where the units of materialise divide a range of subjects."""
        return self._of_run("layout", f"part-{partition:05d}.json")

    def materialised(self, version: str, unit: int) -> str:
        """What a unit of materialise has written for a version; written last."""
        return self._of_run("materialise", f"{version}/unit-{unit:06d}.json")

    def listed(self, version: str, number: int) -> str:
        """The lists of parts of a version with this number; written after them."""
        return self._of_run("materialise", f"{version}/lists-{number:05d}.json")

    def prefix(self, stage: Literal["assigned", "found"]) -> str:
        """The prefix of all objects of one of these methods."""
        return self._of_run(stage, "")

    def _of_run(self, stage: str, name: str) -> str:
        return f"{_WORK}/{stage}/{self.stages[stage][:16]}/{name}"
