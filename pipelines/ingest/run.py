"""Ingest: plan the shards of a source and write them in parallel; the result is written last."""

import logging
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from lookalike.config import canonical_json, to_dict
from lookalike.errors import InputError, LookalikeError
from lookalike.redaction import redact_logs
from lookalike.scratch import scratch
from lookalike.storage import Store, open_store, read_members
from lookalike.storage.claim import claim
from pipelines.entry import ray_session
from pipelines.ingest.config import SAMPLE, IngestConfig
from pipelines.ingest.folder import plan_folder
from pipelines.ingest.sample.source import plan_sample
from pipelines.ingest.source import Shard

logger = logging.getLogger(__name__)

RESULT = "ingest.json"  # written last; without it the prefix is incomplete


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Write raw WebDataset shards below ``config.raw``, and return the content of ``ingest.json``.

    Shards that exist are skipped, so that a killed run can be resumed. The result has the counts ``images``,
    ``subjects`` and ``shards``, and the ``skipped`` files with their reasons.

    Raises:
        InputError: the source is missing or empty, or has a subject without images.
        ConflictError: the prefix holds shards of another source or configuration.
    """
    plan = plan_sample(config) if config.source == SAMPLE else plan_folder(config)
    store = open_store(config.raw)
    claim(store, to_dict(config) | {"source_identity": plan.identity})
    total = sum(shard.images for shard in plan.shards)
    result = {"images": total, "subjects": plan.subjects, "shards": len(plan.shards), "skipped": dict(plan.skipped)}
    if store.exists(RESULT):
        logger.info("%s is complete already", store.uri)
        recorded = read_members(store, RESULT, {"images": int, "subjects": int, "shards": int, "skipped": dict})
        if any(recorded[name] != result[name] for name in ("images", "subjects", "shards")):
            fix = "remove it and run the same command again"
            raise InputError("the recorded result does not match the photos", value=store.uri_of(RESULT), fix=fix)
        return recorded
    for key, document in plan.extras.items():
        store.write(key, canonical_json(document).encode())
    present = {info.key for info in store.list("shard-")}
    missing = [shard for shard in plan.shards if shard.name not in present]
    with ray_session(), tqdm(total=total, desc="ingest", unit="img") as progress:
        progress.update(total - sum(shard.images for shard in missing))
        for images in _write_all(missing, store):
            progress.update(images)
    store.write(RESULT, canonical_json(result).encode())
    return result


def _write_shard(shard: Shard, store: Store) -> int:
    """Write one shard and upload it atomically to ``store``; return its number of images."""
    redact_logs()
    with scratch("shard") as folder:
        path = folder / shard.name
        shard.write(path)
        store.upload(shard.name, path)
    return shard.images


def _write_all(shards: list[Shard], store: Store) -> Iterator[int]:
    """Write shards as Ray tasks, at most two per CPU at a time; yield the number of images of each finished one."""
    import ray  # not at the top: who only reads the sample world may have no Ray
    from ray.exceptions import RayTaskError

    task = ray.remote(num_cpus=1)(_write_shard)
    window = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(reversed(shards))
    running: list[ray.ObjectRef[int]] = []
    while waiting or running:
        while waiting and len(running) < window:
            running.append(task.remote(waiting.pop(), store))
        done, running = ray.wait(running)
        try:
            yield from ray.get(done)
        except RayTaskError as error:
            if isinstance(error.cause, LookalikeError):
                raise error.cause from None
            raise
