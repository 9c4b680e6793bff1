"""How long a finetune takes and what it costs, before anything runs."""

from pathlib import Path
from statistics import median
from typing import Any

from lookalike.config import read_config_file
from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store, read_lines
from pipelines.evaluate import EvaluateConfig
from pipelines.finetune.config import FinetuneConfig, PriceConfig

_METRICS = "metrics.jsonl"
_STEP = "step_seconds"


_NEEDED = ("seconds_per_step", "seconds_per_image_step", "seconds_per_loss", "seconds_before")


def estimate(config: FinetuneConfig, price: PriceConfig) -> dict[str, Any]:
    """Return the seconds of each part, their sum and the price: ``before``, ``training``, ``evaluation``, ``seconds``,
    ``price`` (null without ``per_hour``), ``currency``.

    The evaluation measures the personal model and its base: each generates ``prompts_per_subject`` images by each
    denoising schedule, and computes ``max_samples`` losses with the right conditions and with shuffled ones.

    Raises:
        ConfigError: the speed of the machine is not given.
        InputError: the table or the measured run cannot be read.
    """
    machine = _machine(price)
    missing = [name for name in _NEEDED if machine.get(name) is None]
    if missing:
        raise ConfigError(
            f"the speed of the machine is not known: {', '.join(missing)}",
            value=price.machine,
            fix="name a table with --price.table jobs/configs/prices.yaml, or give them (--price.seconds_per_step 0.4)",
        )
    steps = sum(phase.steps for phase in config.phases(1.0))
    evaluation = EvaluateConfig(**{"bundle": "b", "suite": "s", "out": "o", **config.evaluation})
    each = evaluation.images_per_prompt or 1
    images = 2 * evaluation.prompts_per_subject * each * len(evaluation.stages)
    losses = 2 * 2 * evaluation.max_samples
    parts = {
        "before": machine["seconds_before"],
        "training": steps * machine["seconds_per_step"],
        "evaluation": images * evaluation.steps * machine["seconds_per_image_step"]
        + losses * machine["seconds_per_loss"],
    }
    seconds = sum(parts.values())
    per_hour = machine.get("per_hour")
    return {
        **{name: round(value, 1) for name, value in parts.items()},
        "steps": steps,
        "images": images,
        "seconds": round(seconds, 1),
        "price": None if per_hour is None else round(seconds / 3600 * per_hour, 4),
        "currency": machine.get("currency"),
        "machine": machine.get("machine"),
    }


def _machine(price: PriceConfig) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if price.table is not None:
        machines = read_config_file(Path(price.table)).get("machines")
        if not isinstance(machines, dict) or not all(isinstance(each, dict) for each in machines.values()):
            raise InputError("the price table has no `machines`", value=price.table, fix="see jobs/configs/prices.yaml")
        name = price.machine or next(iter(machines), "") if len(machines) == 1 else price.machine
        if name not in machines:
            fix = f"choose --price.machine from {', '.join(map(str, machines))}"
            raise ConfigError("the price table has no such machine", value=name, fix=fix)
        row = {**vars(PriceConfig(**_known(machines[name], price.table))), "machine": name}
    given = {name: value for name, value in vars(price).items() if value is not None}
    row |= given
    if row.get("measured_run"):
        row["seconds_per_step"] = _measured(row["measured_run"])
    return row


def _known(row: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = row.keys() - PriceConfig.__dataclass_fields__.keys() | row.keys() & {"table", "machine"}
    if unknown:
        fix = f"use {', '.join(sorted(PriceConfig.__dataclass_fields__.keys() - {'table', 'machine'}))}"
        raise ConfigError(f"the price table has unknown settings: {sorted(map(str, unknown))}", value=where, fix=fix)
    return row


def _measured(uri: str) -> float:
    """Median step time of an earlier run, s."""
    store = open_store(uri)
    times = [line[_STEP] for line in read_lines(store, _METRICS) if isinstance(line.get(_STEP), float)]
    if not times:
        raise InputError("the run has recorded no step", value=store.uri_of(_METRICS), fix="name a finished run")
    return float(median(times))
