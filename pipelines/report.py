"""Make one page from the results of other jobs."""

from dataclasses import field
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors

import lookalike
from lookalike.data.images import ImageError, decode
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.evaluation.gate import Check
from lookalike.evaluation.scores import GRID, SCORES, Scores
from lookalike.report.curves import held_out_curve, layer_curve, loss_curve
from lookalike.report.page import (
    Curation,
    Evaluation,
    Finetune,
    Page,
    Reason,
    Training,
    data_uri,
    render,
)
from lookalike.storage import (
    Store,
    latest_version,
    locate_object,
    open_store,
    read_json,
    read_lines,
    read_members,
    read_object,
    version_store,
)
from lookalike.storage.claim import inside
from lookalike.training.history import METRICS
from lookalike.values import configuration

_SAMPLES = 6


@configuration()
class ReportConfig:
    """Results to show. Each one is optional; without it the page has no such section."""

    out: str
    """URI of the page, e.g. ``file:///runs/toys-1/report.html``; an existing page is replaced."""
    title: str = "lookalike"
    """Heading of the page."""
    dataset: str | None = None
    """URI of a curated data set; its newest snapshot is shown."""
    run: str | None = None
    """URI of a training run."""
    scores: list[str] = field(default_factory=list)
    """URIs of evaluations; may be repeated."""
    decision: list[str] = field(default_factory=list)
    """URIs of a gate's decisions (``decision.json`` or its folder); may be repeated."""
    finetune: str | None = None
    """URI of a finetune's result (its folder, with ``result.json``)."""
    generation: str | None = None
    """URI of a generation."""
    timings: str | None = None
    """URI of a JSON list of {step, seconds, peak_memory_gib, outcome}."""


def report(config: ReportConfig) -> int:
    """Write the page; returns its size in bytes. Raises InputError for a location without such a result."""
    out, name = locate_object(config.out)
    page = Page(
        title=config.title,
        curation=_curation(open_store(config.dataset)) if config.dataset else None,
        training=_training(open_store(config.run)) if config.run else None,
        evaluations=[_evaluation(open_store(uri)) for uri in config.scores],
        decisions=[_decision(uri) for uri in config.decision],
        finetune=_finetune(open_store(config.finetune)) if config.finetune else None,
        generation=_generation(open_store(config.generation)) if config.generation else None,
        timings=_timings(config.timings) if config.timings else [],
        code_version=lookalike.__version__,
    )
    data = render(page).encode()
    out.write(name, data)
    return len(data)


def _curation(dataset: Store) -> Curation:
    store = version_store(dataset, latest_version(dataset))
    document = read_object(store, "report.json", "counts", "rejects", "funnel", "triplets")
    with decoding("the report of a curation", store.uri_of("report.json")):
        counts, rejects = document["counts"], document["rejects"]
        reasons = [
            Reason(
                step["reason"],
                step["dropped"],
                step["what"],
                [
                    (_jpeg(reject["thumb_b64"]), [_jpeg(photo) for photo in reject["beside_b64"] if photo])
                    for reject in rejects.get(step["reason"], [])
                    if reject["thumb_b64"]
                ],
            )
            for step in document["funnel"]
            if step["dropped"] and step.get("unit", "images") == "images"
        ]
        samples: dict[str, tuple[list[str], str, str]] = {}
        for row in document["triplets"]:
            if row["split"] == "train":
                references = [_jpeg(photo) for photo in row["references_b64"]]
                samples.setdefault(row["subject"], (references, _jpeg(row["target_b64"]), row["prompt"]))
        return Curation(
            images_in=counts["images_in"],
            images_kept=counts["images_kept"],
            subjects=counts["subjects"],
            triplets=counts["triplets"],
            reasons=reasons,
            samples=list(samples.values())[:_SAMPLES],
        )


def _jpeg(base64_text: str) -> str:
    return f"data:image/jpeg;base64,{base64_text}"


def _png(store: Store, key: str) -> str:
    """Read a grid as a ``data:`` URI, and check that it decodes: a browser shows nothing for a damaged one."""
    data = store.read(key)
    try:
        decode(data)
    except ImageError as error:
        raise InputError(
            f"the grid is not a readable image: {error.what}",
            value=store.uri_of(key),
            fix="run the job that writes it again",
        ) from error
    return data_uri(data)


def _training(store: Store) -> Training:
    records, where = read_lines(store, METRICS), store.uri_of("result.json")
    result = read_members(store, "result.json", {"steps": int, "stages": list, "bundle_uri": str})
    bundle = inside(store, result["bundle_uri"], where)
    weights = _layer_weights(bundle)
    with decoding("the records of a training run", store.uri):
        steps = [record for record in records if "loss" in record]
        facts = {"optimizer steps": f"{result['steps']}"}
        if steps and "images_per_second" in steps[0]:
            facts["training images per second"] = f"{np.median([step['images_per_second'] for step in steps]):.0f}"
            waiting = np.mean([step["data_wait_share"] for step in steps])
            facts["of the time spent waiting for data"] = f"{100 * waiting:.0f} %"
        return Training(
            loss_curve(records),
            held_out_curve(records) if any("validation" in record for record in records) else None,
            result["stages"],
            facts,
            layer_curve(weights) if weights else None,
        )


def _layer_weights(bundle: Store) -> dict[str, list[float]]:
    """Read what :meth:`~lookalike.models.aggregate.LayerAggregator.layer_weights` returns, without PyTorch."""
    file = "aggregator/diffusion_pytorch_model.safetensors"
    if not bundle.exists(file):  # a personal bundle
        return {}
    data = bundle.read(file)
    with decoding("a safetensors file", bundle.uri_of(file)):
        tensors = load_tensors(data)
    ending = ".pooling.collapse.weight"
    return {name.split(".")[-4]: tensors[name][0].tolist() for name in sorted(tensors) if name.endswith(ending)}


def _evaluation(store: Store) -> Evaluation:
    return Evaluation(Scores.from_json(store.read(SCORES), store.uri_of(SCORES)), _png(store, GRID))


def _decision(uri: str) -> dict[str, Any]:
    store, key = locate_object(uri) if uri.endswith(".json") else (open_store(uri), "decision.json")
    found = read_members(store, key, {"model": str, "promoted": bool, "checks": list[Check]})
    verdict, advice = found.get("verdict"), found.get("advice")  # which earlier versions did not write
    texts = isinstance(advice, list) and all(isinstance(line, str) for line in advice)
    return {
        **found,
        "version": found.get("version") or "",
        "verdict": verdict if isinstance(verdict, str) else "",
        "advice": advice if texts else [],
    }


def _finetune(store: Store) -> Finetune:
    where = store.uri_of("result.json")
    result = read_members(store, "result.json", {"customer": str, "subject": str, "scores": str})
    after = _evaluation(inside(store, result["scores"], where))  # its grid shows before and after
    decision = _decision(inside(store, result["decision"], where).uri) if "decision" in result else None
    held_out = result.get("held_out", 0)
    if type(held_out) is not int:
        raise InputError("held_out is not a number of photos", value=held_out, fix="run the finetune again")
    return Finetune(result["customer"], result["subject"], after.grid, after.scores, decision, held_out)


def _generation(store: Store) -> tuple[str, str]:
    where = store.uri_of("generations.json")
    result = read_members(store, "generations.json", {"model": dict, "images": list})
    with decoding("the result of a generation", where):
        model = result["model"]
        name = str(f"{model['name']}, version {model['version']}" if model["version"] else model["bundle_uri"])
    return name, _png(store, "contact_sheet.png")


def _timings(uri: str) -> Any:
    store, key = locate_object(uri)
    found = read_json(store, key)
    if not isinstance(found, list) or not all(isinstance(row, dict) and "step" in row for row in found):
        raise InputError(
            "the file is not a list of timed steps", value=uri, fix="write [{step, seconds, peak_memory_gib, outcome}]"
        )
    return found
