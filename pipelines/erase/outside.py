"""Search a store outside of the customers' prefixes for what was made of a customer's photos and models.

Every output of a job has its configuration in ``run.json``: one that names the customer's models or places belongs to
the erasure. Shared data sets are searched for the photos by their content, and training runs for these data sets.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lookalike.config import fingerprint
from lookalike.errors import InputError
from lookalike.scratch import scratch
from lookalike.storage import ObjectInfo, Store, list_versions, open_store, read_manifest, read_object
from lookalike.storage.claim import RECORD
from lookalike.storage.purge import entries, pages
from pipelines.actors import run_tasks
from pipelines.curate.removals import HoldersWork, find_holders, summed
from pipelines.curate.snapshot_tables import Snapshot
from pipelines.curate.takedown import read_list
from pipelines.erase.scope import Scope
from pipelines.erase.state import Holder, Learned, Output

log = logging.getLogger(__name__)

_RESULTS = {
    "generations.json": "generated images",
    "scores.json": "evaluations",
    "measurements.parquet": "evaluations",
    "compare.json": "comparisons",
    "decision.json": "decisions",
    "pairs.json": "preference pages",
    "preference.json": "preference results",
    "export.json": "exported data sets",
    "ingest.json": "raw shards",
    "images/": "generated images",  # of a job that was killed
}
"""What a job's place holds, by which its kind is known. All of them are made anew by their command."""
_OF_CUSTOMERS = re.compile(r"(?:^|.*/)customers/[a-z0-9][a-z0-9_\-]*/", re.DOTALL)
_PUBLISHED = re.compile(r"(?:(.*)/)?published/v\d{4}\.json", re.DOTALL)
_LARGEST = 16 << 20  # bytes of a claim
_ALL = -1  # ``entry`` of the row of :func:`find_holders` that counts all images


@dataclass
class Found:
    """What :meth:`Outside.search` has found."""

    outputs: list[Output] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)
    learned: list[Learned] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Claim:
    place: Store
    record: dict[str, Any]
    names_us: bool

    @property
    def is_training(self) -> bool:
        return {"dataset", "stages", "batch_size"} <= set(self.record.get("config", {}))


@dataclass(frozen=True)
class Outside:
    """The places to search."""

    scope: Scope
    places: tuple[str, ...]
    """URIs; what lies in a customer's prefix is passed over."""
    take_down: str | None = None
    """For the commands that are shown."""

    def search(self, photos: bytes, photos_uri: str | None) -> Found:
        """Search all places.

        Args:
            photos: content hashes as lines of a take-down list.
            photos_uri: where these lines lie for tasks on other machines; None searches in this process.
        """
        claims, datasets = self._list()
        found = Found()
        if photos:
            for dataset in datasets:
                found.holders += self._holders(dataset, photos, photos_uri)
        held = {holder.sha256 for holder in found.holders}
        for claim in claims:
            snapshot = claim.record.get("identity", {}).get("snapshot") or {}
            if claim.is_training:
                owner = str(claim.record.get("config", {}).get("owner") or "")
                if self.scope.owns(owner):
                    found.outputs.append(self._output(claim.place, "training runs"))
                elif claim.names_us or snapshot.get("sha256") in held:
                    found.learned.append(self._learned(claim))
            elif claim.names_us:
                kind = self._kind(claim.place, claims)
                if kind is None:
                    found.unclear.append(claim.place.uri)
                else:
                    found.outputs.append(self._output(claim.place, kind))
        return found

    def is_ours(self, output: Output) -> bool:
        """Whether a place of the inventory is still the customer's: after a kill another job may have taken it."""
        place = open_store(output.uri)
        if not place.exists(RECORD):
            return True
        return self.scope.pattern.search(place.read(RECORD).decode(errors="replace")) is not None

    def _list(self) -> tuple[list[_Claim], list[Store]]:
        """Claims that matter, and shared data sets; of nested places each is listed once."""
        claims: dict[str, _Claim] = {}
        datasets: dict[str, Store] = {}
        listed = 0
        for root in map(open_store, self.places):
            above = "/".join(root.uri.split("/")[3:])  # behind the scheme and the bucket
            for page in pages(root):
                listed += len(page)
                for info in page:
                    if _OF_CUSTOMERS.match(f"{above}/{info.key}"):
                        continue
                    if match := _PUBLISHED.fullmatch(info.key):
                        dataset = root.child(match[1]) if match[1] else root
                        datasets[dataset.uri] = dataset
                    elif info.key.rpartition("/")[2] == RECORD:
                        claim = self._claim(root, info)
                        if claim is not None:
                            claims[claim.place.uri] = claim
                if listed % 100_000 < len(page):
                    log.info("%d objects listed in the search outside of the customer's prefix", listed)
        return [claims[uri] for uri in sorted(claims)], [datasets[uri] for uri in sorted(datasets)]

    def _claim(self, root: Store, info: ObjectInfo) -> _Claim | None:
        """The claim at ``info``; None if it neither names the customer nor is of a training run."""
        folder = info.key.rpartition("/")[0]
        place = root.child(folder) if folder else root
        if info.size > _LARGEST:
            what = f"a claim has {info.size} bytes, more than {_LARGEST}"
            raise InputError(what, value=root.uri_of(info.key), fix="remove it, or restore it from a copy")
        try:
            record = read_object(root, info.key)
        except InputError as error:
            log.warning("a claim cannot be read, and is searched as text: %s", error)
            text = root.read(info.key).decode(errors="replace")
            return _Claim(place, {}, True) if self.scope.pattern.search(text) else None
        text = json.dumps([record.get("config"), record.get("identity")], ensure_ascii=False)
        claim = _Claim(place, record, bool(self.scope.pattern.search(text)))
        return claim if claim.names_us or claim.is_training else None

    def _kind(self, place: Store, claims: list[_Claim]) -> str | None:
        """What a place that names the customer holds; None if it may not be removed whole, or is not known."""
        if any(other.place.uri != place.uri and other.place.prefix_in(place) is not None for other in claims):
            return None  # it holds other jobs' places
        if self.scope.root.prefix_in(place) is not None or self.scope.customer_home.prefix_in(place) is not None:
            return None
        kinds = set[str]()
        for page in pages(place):
            for info in page:
                if _PUBLISHED.fullmatch(info.key) or info.key.endswith(f"/{RECORD}"):
                    return None
                kinds |= {kind for name, kind in _RESULTS.items() if info.key == name or info.key.startswith(name)}
        return min(kinds) if kinds else None

    def _output(self, place: Store, kind: str) -> Output:
        objects, size = 0, 0
        for page in entries(place):
            objects += sum(entry.kind != "folder" for entry in page)
            size += sum(entry.size for entry in page)
        return Output(place.uri, kind, objects, size)

    def _holders(self, dataset: Store, photos: bytes, photos_uri: str | None) -> Iterator[Holder]:
        """The versions of a data set that hold some of the photos."""
        with scratch("photos") as folder:
            (folder / "photos.txt").write_bytes(photos)
            uri = photos_uri or open_store(str(folder)).uri_of("photos.txt")
            for version in list_versions(dataset):
                snapshot = Snapshot.of(dataset, version)
                units = tuple((snapshot, *pieces) for pieces in snapshot.table("images").units())
                if not units:
                    continue
                work = HoldersWork(uri, units)
                if photos_uri is None:
                    found = (find_holders(work, unit) for unit in range(len(units)))
                    count = sum(int(columns["images"][columns["entry"] == _ALL].sum()) for columns in found)
                else:
                    tables = run_tasks(find_holders, work, len(units), noun="parts of shared data sets searched")
                    count = sum(summed(tables, len(read_list(uri)))[1].values())
                if count:
                    yield Holder(dataset.uri, version, count, fingerprint(read_manifest(dataset, version)))

    def _learned(self, claim: _Claim) -> Learned:
        bundle = ""
        if claim.place.exists("result.json"):
            bundle = str(read_object(claim.place, "result.json").get("bundle_sha256", ""))
        config = claim.record.get("config", {})
        dataset, listed = config.get("dataset"), self.take_down or "LIST"
        anew = (
            f"python jobs/curate.py run --raw RAW --dataset {dataset} --filters.taken-down.list {listed} && "
            f"python jobs/train.py run --dataset {dataset} --run NEW --preset {config.get('preset')} "
            f"(RAW: the data set's raw shards; other settings: `config` in {claim.place.uri_of(RECORD)})"
        )
        return Learned(claim.place.uri, bundle, anew)
