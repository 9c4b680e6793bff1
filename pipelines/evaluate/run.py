"""Run one evaluation, from its configuration to its scores."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lookalike import config as configs
from lookalike.annotators.embedder import revision_of
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import BundleReference
from lookalike.config import fingerprint
from lookalike.data.images import decode
from lookalike.diffusion.schedule import SCHEDULE_TITLES
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation import metrics
from lookalike.evaluation.calibration import judge_of
from lookalike.evaluation.measurements import MEASUREMENTS, SCHEMA, UNREADABLE, estimates, measured, to_parquet
from lookalike.evaluation.scores import EXAMPLES, GRID, SCORES, Scores, Source
from lookalike.evaluation.suites import Case, Suite, distinct
from lookalike.registry.names import check_one_customer, owner_of
from lookalike.storage import Store, open_store
from lookalike.storage.claim import run_once
from lookalike.storage.erasing import Watch
from pipelines.actors import run_units
from pipelines.entry import ray_session
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.kept import read_rows, remove_rows
from pipelines.evaluate.models import with_pinned_models
from pipelines.evaluate.suite_source import SuiteSource, find_suite, samples_in, snapshot, suite_of
from pipelines.evaluate.units import PHOTO, EvaluationWork, image_key, plan

log = logging.getLogger(__name__)

_GRID_ROWS = 8
_JOINED = 1024  # units whose rows are joined at once
_MOST_UNREADABLE = 0.25  # share of the cases; beyond it the rest is too small a part of the suite


def evaluate(config: EvaluateConfig) -> Scores:
    """Measure ``config.bundle``; writes measurements, images and the grid, and ``scores.json`` last.

    Killed at any moment and started again, it repeats at most one batch of each actor, and ends with the same result.

    Raises:
        InputError: the bundle or the suite is missing, or the suite is not complete.
        ConfigError: a model of a metric is missing, or the suite gives more references than a bundle reads.
        ConflictError: ``config.out`` holds another evaluation.
    """
    bundles = [locate_bundle(config.bundle, base_hint=config.base)]
    if config.base is not None:
        bundles.append(locate_bundle(config.base))
    mine = {"the bundle": owner_of(config.bundle), "--bundle": config.bundle, "--base": config.base}
    check_one_customer({**mine, "--suite": config.suite, "--distractors": config.distractors, "--out": config.out})
    found = find_suite(config)
    store = open_store(config.out)
    # Before the claim, so that the same command with another model may follow one that named a model that is missing.
    pinned = config if store.exists(SCORES) else with_pinned_models(config)
    content: dict[str, Any] = {
        "inputs": {"bundles": [bundle.sha256 for bundle in bundles], "suite": found.source.sha256}
    }
    if config.distractors is not None:
        content["distractors_sha256"] = snapshot(config.distractors).sha256

    def earlier(_: str) -> Scores:
        remove_rows(store)  # of a run that was killed between its last two steps
        return Scores.from_json(store.read(SCORES), store.uri_of(SCORES))

    return run_once(
        store,
        SCORES,
        config,
        content=content,
        earlier=earlier,
        work=lambda run: _evaluate(pinned, run, store, bundles, found),
    )


def _evaluate(
    config: EvaluateConfig, run: str, store: Store, bundles: Sequence[BundleReference], found: SuiteSource
) -> Scores:
    judge, protocols = judge_of(config, revision_of(config.embedder))
    distractors = samples_in(snapshot(config.distractors), None, config) if config.distractors else []
    suite = suite_of(config, found, distractors)
    per_prompt = config.images_per_prompt or (found.contents.images_per_prompt if found.contents else 1)
    cases = suite.images(config.subjects, config.prompts_per_subject, config.conditions, per_prompt)
    work = plan(config, run, fingerprint(protocols), bundles, suite, cases, sets=bool(metrics.SET_METRICS))
    _check_references(work)
    table = _measure(work, store)
    _check_readable(table, work, store)
    unscored = Scores(
        bundle=Source(bundles[0].uri, bundles[0].sha256),
        suite=found.source,
        conditions=config.conditions,
        metrics={},
        embedder=revision_of(config.embedder),
        base=Source(bundles[1].uri, bundles[1].sha256) if config.base else None,
        config=configs.to_dict(config),
        judge=judge,
        protocols=protocols,
    )
    measurements = to_parquet(table, unscored.evaluation())
    store.write(MEASUREMENTS, measurements)
    grid, examples = _grid(config, store, suite, _measured_cases(table, cases))
    store.write(GRID, grid)
    store.write(EXAMPLES, examples)
    scores = replace(
        unscored,
        metrics=estimates(measurements, config.seed, store.uri_of(MEASUREMENTS), metrics.SHARES),
        measurements_sha256=hashlib.sha256(measurements).hexdigest(),
    )
    store.write(SCORES, scores.to_json())
    remove_rows(store)
    return scores


def _check_references(work: EvaluationWork) -> None:
    """Raise ConfigError if a sample has more references than one of the bundles reads."""
    for bundle in work.bundles:
        for sample in work.pool.values():
            if len(sample.references) > bundle.max_references:
                raise ConfigError(
                    f"the suite gives {len(sample.references)} references for {sample.sample_id!r}, and this bundle"
                    f" reads at most {bundle.max_references}",
                    value=bundle.uri,
                    fix="evaluate a bundle that reads more references, or take another suite",
                )


def _measure(work: EvaluationWork, store: Store) -> pa.Table:
    """Measure the units that are not done yet; rows sorted, so that equal evaluations give equal tables."""
    from pipelines.evaluate.worker import Evaluator

    numbers = range(len(work.units))
    done = {number for number, _ in read_rows(store, work.run, _identities(work, numbers))}
    log.info(
        "%d losses, %d images and %d stand-ins, in %d units, of which %d are done",
        *(sum(len(unit.cases) for unit in work.units if unit.kind == kind) for kind in ("losses", "images")),
        sum(len(unit.stand_ins) for unit in work.units),
        len(work.units),
        len(done),
    )
    missing = [number for number in numbers if number not in done]
    sets = [number for number in missing if work.units[number].kind == "set"]  # which read the images of the others
    first = [number for number in missing if work.units[number].kind != "set"]
    with ray_session() if missing and work.config.actors.count else nullcontext():
        watch = Watch(store)
        for part in (first, sets):
            for _ in run_units(Evaluator, work, part, work.config.actors) if part else ():
                watch.check()
    return _all_rows(work, store)


def _all_rows(work: EvaluationWork, store: Store) -> pa.Table:
    """The rows of all units, ordered by unit, metric and case; no unit's own table stays in memory."""
    parts, some, read = [SCHEMA.empty_table()], [], 0
    for number, rows in read_rows(store, work.run, _identities(work, range(len(work.units)))):
        named = rows.add_column(0, SCHEMA.field("unit"), pa.array([number] * len(rows), pa.int64()))
        some.append(named.sort_by([("metric", "ascending"), ("case", "ascending")]))
        read += 1
        if len(some) == _JOINED:
            parts.append(pa.concat_tables(some).combine_chunks())
            some = []
    if read < len(work.units):
        raise InputError(
            f"the rows of {len(work.units) - read} units disappeared while the evaluation ran",
            value=store.uri,
            fix="run the same command again, and let nothing else write there",
        )
    return pa.concat_tables([*parts, *some])


def _identities(work: EvaluationWork, numbers: Iterable[int]) -> list[tuple[int, str]]:
    return [(number, work.identity_of(number)) for number in numbers]


def _check_readable(table: pa.Table, work: EvaluationWork, store: Store) -> None:
    """Log the cases and photos that were not measured.

    Raises InputError: too many cases of losses and images cannot be read. Their units are measured again by the next
    attempt.
    """
    failed = table.filter(pc.starts_with(table["metric"], UNREADABLE))
    if not len(failed):
        return
    names = failed.group_by(["case", "metric"]).aggregate([])
    names = names.append_column("photo", pc.starts_with(names["case"], PHOTO))
    names = names.sort_by([(name, "ascending") for name in ("photo", "case", "metric")])
    first = names.slice(0, 5).to_pylist()
    shown = "; ".join(f"{row['case']} ({row['metric'].removeprefix(UNREADABLE)})" for row in first)
    lost = len(names) - (pc.sum(names["photo"]).as_py() or 0)
    measured_units = [number for number, unit in enumerate(work.units) if unit.kind in ("losses", "images")]
    planned = pc.unique(table.filter(pc.is_in(table["unit"], pa.array(measured_units, pa.int64())))["case"])
    cases = len(planned) - (pc.sum(pc.starts_with(planned, PHOTO)).as_py() or 0)
    if lost > _MOST_UNREADABLE * cases:
        remove_rows(store, sorted(pc.unique(failed["unit"]).to_pylist()))
        raise InputError(
            f"{lost} of {cases} cases cannot be read, at most {_MOST_UNREADABLE:.0%} may: {shown}",
            value=store.uri_of(MEASUREMENTS),
            fix="repair the suite and run the same command again",
        )
    log.warning("%d of %d cases are not measured: %s", lost, cases, shown)


def _measured_cases(table: pa.Table, cases: Sequence[Case]) -> list[Case]:
    """Select the cases that were measured."""
    known = pc.unique(measured(table)["case"])
    chosen = pc.is_in(pa.array([case.case_id for case in cases], pa.string()), value_set=known)
    return [case for case, has in zip(cases, chosen.to_pylist(), strict=True) if has]


def _grid(config: EvaluateConfig, store: Store, suite: Suite, cases: Sequence[Case]) -> tuple[bytes, bytes]:
    """Draw some cases, one of each subject first, as a PNG; also return them as examples.json for comparisons."""
    from lookalike.report.examples import Examples, example_of
    from lookalike.report.grid import GridRow, draw_grid, encode_grid
    from pipelines.evaluate.photos import Photos

    before_and_after = {1: "before: ", 0: "after: "} if config.base else {0: ""}
    columns = {
        f"{state}{SCHEDULE_TITLES.get(stages, stages)}": (bundle, stages)
        for stages in config.stages
        for bundle, state in before_and_after.items()
    }
    rows, examples, photos = [], [], Photos()
    first_of_subject = {suite.pool[case.target].subject: case for case in reversed(cases)}.values()
    ordered = [*reversed(first_of_subject), *(case for case in cases if case not in first_of_subject)]
    for case in ordered[:_GRID_ROWS]:
        sample, given = suite.pool[case.target], suite.pool[case.conditions]
        real = [sample.target] if sample.target else distinct(suite.photos_for(sample), sample.references)[:1]
        images = dict(zip(["real photo"], photos.load(list(real)), strict=False))
        for title, (bundle, stages) in columns.items():
            images[title] = decode(store.read(image_key(bundle, case, stages)))
        references = photos.load(given.references)
        rows.append(GridRow(references, given.prompt, images, note=sample.subject))
        main, photo = image_key(0, case, config.stages[0]), images.get("real photo")
        examples.append(example_of(case.case_id, sample.subject, given.prompt, main, references, photo))
    return encode_grid(draw_grid(rows, ["real photo", *columns])), Examples(examples).to_json()
