"""Run one evaluation, from its configuration to its scores."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike import config as configs
from lookalike.annotators.embedder import revision_of
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import BundleReference
from lookalike.data.images import decode
from lookalike.data.triplets import Split, Triplet, load_images, read_triplets
from lookalike.diffusion.schedule import SCHEDULE_TITLES
from lookalike.errors import InputError
from lookalike.evaluation.calibration import judge_of
from lookalike.evaluation.measurements import MEASUREMENTS, SCHEMA, UNREADABLE, estimates, measured, to_parquet
from lookalike.evaluation.scores import GRID, SCORES, Scores, Source
from lookalike.evaluation.suites import Case, Suite, chosen_rows
from lookalike.storage import Store, latest_version, open_store, read_manifest, version_store
from lookalike.storage.claim import run_once
from pipelines.actors import run_units
from pipelines.evaluate.config import EvaluateConfig

log = logging.getLogger(__name__)

_GRID_ROWS = 8
_TRIPLETS = 65_536  # of a split, from which a suite is made; about 1.6 kB each
_MOST_UNREADABLE = 0.25  # share of the cases; beyond it the rest is too small a part of the suite


def evaluate(config: EvaluateConfig) -> Scores:
    """Measure ``config.bundle``; writes measurements, images and the grid, and ``scores.json`` last.

    Raises:
        InputError: the bundle or the snapshot is missing, or the split has no triplets.
        ConflictError: ``config.out`` holds another evaluation.
    """
    bundles = [locate_bundle(config.bundle, base_hint=config.base)]
    if config.base is not None:
        bundles.append(locate_bundle(config.base))
    snapshot = _snapshot(config.suite)
    store = open_store(config.out)
    content: dict[str, Any] = {"inputs": {"bundles": [bundle.sha256 for bundle in bundles], "suite": snapshot.sha256}}
    if config.distractors is not None:
        content["distractors_sha256"] = _snapshot(config.distractors).sha256
    return run_once(
        store,
        SCORES,
        config,
        content=content,
        earlier=lambda _: Scores.from_json(store.read(SCORES), store.uri_of(SCORES)),
        work=lambda _: _evaluate(config, store, bundles, snapshot),
    )


def _evaluate(config: EvaluateConfig, store: Store, bundles: Sequence[BundleReference], snapshot: Source) -> Scores:
    judge = judge_of(config, revision_of(config.embedder))
    suite, snapshots = _suite(config, snapshot)
    cases = suite.images(config.subjects, config.prompts_per_subject, config.conditions)
    table = _measure(config, bundles, suite, snapshots, cases)
    unscored = Scores(
        bundle=Source(bundles[0].uri, bundles[0].sha256),
        suite=snapshot,
        conditions=config.conditions,
        metrics={},
        embedder=revision_of(config.embedder),
        base=Source(bundles[1].uri, bundles[1].sha256) if config.base else None,
        config=configs.to_dict(config),
        judge=judge,
    )
    measurements = to_parquet(table, unscored.evaluation())
    store.write(MEASUREMENTS, measurements)
    table = _measured(table, f"{store.uri}/{MEASUREMENTS}")
    measured = set(table["case"].to_pylist())
    shown = [case for case in cases if case.case_id in measured]
    store.write(GRID, _grid(config, store, suite, snapshots, shown))
    scores = replace(
        unscored,
        metrics=estimates(measurements, config.seed, store.uri_of(MEASUREMENTS)),
        measurements_sha256=hashlib.sha256(measurements).hexdigest(),
    )
    store.write(SCORES, scores.to_json())
    return scores


def _snapshot(uri: str) -> Source:
    dataset = open_store(uri)
    version = latest_version(dataset)
    return Source(dataset.uri, configs.fingerprint(read_manifest(dataset, version)), version)


def _suite(config: EvaluateConfig, snapshot: Source) -> tuple[Suite, list[str]]:
    """Read the suite, and for each triplet of its pool the URI of the snapshot's version.

    Of a split with many triplets it is made of some (:func:`~lookalike.evaluation.suites.chosen_rows`).
    """

    def choose(rows: int) -> npt.NDArray[np.int64]:
        return chosen_rows(rows, max(_TRIPLETS, config.max_samples), config.seed)

    def triplets(source: Source, split: Split | None) -> tuple[str, list[Triplet]]:
        version = version_store(open_store(source.uri), source.version or 0)
        return version.uri, read_triplets(version, split, source.sha256, choose)

    uri, measured = triplets(snapshot, config.split)
    other_uri, distractors = triplets(_snapshot(config.distractors), None) if config.distractors else (uri, [])
    suite = Suite(measured, distractors, config.seed)
    return suite, [uri] * suite.count + [other_uri] * len(distractors)


def _measure(
    config: EvaluateConfig,
    bundles: Sequence[BundleReference],
    suite: Suite,
    snapshots: list[str],
    cases: Sequence[Case],
) -> pa.Table:
    """Measure all units on an actor pool; rows sorted, so that equal evaluations give equal tables."""
    from pipelines.evaluate.worker import EvaluationWork, Evaluator, Unit

    losses = suite.losses(config.max_samples, config.conditions)
    units: list[Unit] = []
    for bundle in range(len(bundles)):
        units += [Unit(bundle, part) for part in _parts(losses, config.loss_batch_size)]
        for stages in config.stages:
            units += [Unit(bundle, part, stages) for part in _parts(cases, config.image_batch_size)]
    named = {i for case in [*losses, *cases] for i in (case.target, case.conditions, case.other) if i is not None}
    pool, places = {i: suite.pool[i] for i in sorted(named)}, {i: snapshots[i] for i in sorted(named)}
    work = EvaluationWork(config, tuple(bundles), pool, places, tuple(units))
    log.info(
        "%d losses and %d images of %d subjects, in %d units",
        len(losses) * len(bundles),
        len(cases) * len(config.stages) * len(bundles),
        len({triplet.subject for triplet in suite.pool[: suite.count]}),
        len(units),
    )
    parts = [part.cast(SCHEMA) for part in run_units(Evaluator, work, len(units), config.actors)]
    return pa.concat_tables(parts).sort_by([(name, "ascending") for name in ("unit", "metric", "case")])


def _measured(table: pa.Table, where: str) -> pa.Table:
    """Select the rows of cases that were measured, and log the others.

    Raises InputError: the images of too many cases cannot be read.
    """
    failed = pc.starts_with(table["metric"], UNREADABLE)
    rows = table.filter(failed).to_pylist()
    if not rows:
        return table
    names = sorted({f"{row['case']} ({row['metric'].removeprefix(UNREADABLE)})" for row in rows})
    cases = len(pc.unique(table["case"]))
    if len(names) > _MOST_UNREADABLE * cases or len(rows) == len(table):
        raise InputError(
            f"{len(names)} of {cases} cases cannot be read, at most {_MOST_UNREADABLE:.0%} may: {'; '.join(names[:5])}",
            value=where,
            fix="repair the suite's snapshot and run the same command again",
        )
    log.warning("%d of %d cases are not measured: %s", len(names), cases, "; ".join(names[:5]))
    return measured(table)


def _parts(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[first : first + size]) for first in range(0, len(items), size)]


def _grid(config: EvaluateConfig, store: Store, suite: Suite, snapshots: list[str], cases: Sequence[Case]) -> bytes:
    from lookalike.report.grid import GridRow, draw_grid, encode_grid
    from pipelines.evaluate.worker import image_key

    before_and_after = {1: "before: ", 0: "after: "} if config.base else {0: ""}
    columns = {
        f"{state}{SCHEDULE_TITLES.get(stages, stages)}": (bundle, stages)
        for stages in config.stages
        for bundle, state in before_and_after.items()
    }
    rows = []
    first_of_subject = {suite.pool[case.target].subject: case for case in reversed(cases)}.values()
    ordered = [*reversed(first_of_subject), *(case for case in cases if case not in first_of_subject)]
    for case in ordered[:_GRID_ROWS]:
        triplet, given = suite.pool[case.target], suite.pool[case.conditions]
        photo, references = load_images(open_store(snapshots[case.target]), triplet)
        if given is not triplet:
            references = load_images(open_store(snapshots[case.conditions]), given)[1]
        images = {
            title: decode(store.read(image_key(bundle, case, stages))) for title, (bundle, stages) in columns.items()
        }
        rows.append(GridRow(references, given.prompt, {"real photo": photo, **images}, note=triplet.subject))
    return encode_grid(draw_grid(rows, ["real photo", *columns]))
