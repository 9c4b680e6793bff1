"""The report of a snapshot, as JSON and as a page: images that came in, were dropped and why, triplets, and the drift
since the parent."""

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.compute as pc

import lookalike
from lookalike.data import triplet_files
from lookalike.data.images import ImageError, decode, encode_jpeg, fit_within
from lookalike.errors import InputError
from lookalike.storage import Store
from pipelines.curate.inventory import REASONS
from pipelines.curate.rows import subject_hash
from pipelines.curate.summary import HISTOGRAMS, Summary
from pipelines.curate.work import StageWork

TEMPLATE = Path(lookalike.__file__).parent / "report" / "templates" / "curation.html.j2"
_THUMB_SIDE = 112  # px
_REJECTS = 8  # maximum shown of each reason
_MIN_CONFIDENCE = 0.2  # of 139 languages; "a photo of a dog" has 0.21 for English, "x 1" 0.04 for none


def build_report(
    work: StageWork, summary: Summary, manifest: dict[str, Any], version: Store, examples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the content of ``report.json``, but for the drift.

    ``examples`` are rows of the triplet table, whose images are read by range. Thumbnails are JPEG
    in base64; a file that cannot be decoded has an empty string. The keys:

    - ``counts``, ``passed_over``, ``taken_down``: as in the manifest; ``counts`` has the images of triplets that this
      version stores, and those that it uses again, with the bytes of their JPEG files
    - ``funnel``: [{step, unit, reason, what, dropped, left}]; ``unit`` is objects, members (with examples) or images
    - ``rejects``: {reason: [{key, subject, why, thumb_b64, beside_b64}]}
    - ``triplets``: [{triplet_id, prompt, subject, split, target_b64, references_b64, similarities}]
    - ``histograms``: {name: {first, last, bins, log_base, counts}}
    - ``noted``: {kind of note: images}; a note drops no image
    - ``classes``: {name: subjects}
    - ``languages``: {ISO 639 code: captions}, of a sample of the kept images
    - ``settings``
    """
    languages = count_languages(summary.captions.values())
    return {
        **{name: manifest[name] for name in ("counts", "passed_over", "taken_down")},
        "funnel": list(_funnel(work, summary, manifest["passed_over"])),
        "rejects": {
            reason: [_reject(work, reason, row) for row in rows[:_REJECTS]]
            for reason, rows in sorted(summary.examples.items())
        },
        "triplets": list(_triplets(version, examples)),
        "histograms": {
            name: asdict(chart) | {"counts": summary.histograms.get(name, [0] * chart.bins)}
            for name, chart in HISTOGRAMS.items()
        },
        "noted": dict(sorted(summary.noted.items())),
        "classes": dict(sorted(summary.classes.items(), key=lambda item: (-item[1], item[0]))),
        "languages": dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
        "settings": {
            "raw": work.raw.uri,
            "embedder": work.inputs.embedder,
            "models": work.inputs.models,
            "code": work.inputs.code,
            **work.inputs.config,
        },
    }


def render_report(report: dict[str, Any], title: str) -> str:
    """Return ``report.html``: one page without external assets."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(title=title, **report)


def drift(report: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of two reports (``report.json``). The keys:

    - ``counts``: {name: [value of the parent, value of the report]}
    - ``dropped``: {reason: [share of the parent's images, share of the report's images]}
    - ``distances``: {name of a distribution, or ``classes`` or ``languages``: total variation distance in [0, 1]}; 0
      if both are the same, 1 if they do not overlap.
    """
    names = ("images_in", "images_kept", "subjects_in", "subjects")
    counts = {name: [each["counts"][name] for each in (parent, report)] for name in names}
    counts["triplets"] = [sum(each["counts"]["triplets"].values()) for each in (parent, report)]
    reasons = sorted({*parent["counts"]["dropped"], *report["counts"]["dropped"]})
    charts = parent["histograms"].keys() & report["histograms"].keys()
    distances = {
        name: _distance(*(each["histograms"][name]["counts"] for each in (parent, report))) for name in sorted(charts)
    }
    for name in ("classes", "languages"):
        labels = sorted({*parent.get(name, {}), *report[name]})
        distances[name] = _distance(*([each.get(name, {}).get(x, 0) for x in labels] for each in (parent, report)))
    dropped = {name: _shares(name, parent, report) for name in reasons}
    return {"counts": counts, "dropped": dropped, "distances": distances}


def count_languages(captions: Iterable[str]) -> Counter[str]:
    """Return the number of captions by ISO 639 code of their language, by ``py3langid``; ``und`` if it is uncertain."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_MIN_CONFIDENCE)
    return Counter(str(identifier.classify(caption)[0]) for caption in captions if caption)


def _funnel(work: StageWork, summary: Summary, passed_over: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of listed objects, of members of their tars, and of images by filter."""
    units = {"objects": "Objects listed below --raw", "members": "Members found in the tars of these shards"}
    for unit, what in units.items():
        tally = passed_over[unit]
        left = tally["found"]
        yield _funnel_row(0, unit, f"{unit}_found", what, 0, left)
        for reason, each in tally["reasons"].items():
            left -= each["count"]
            row = _funnel_row(0, unit, reason, REASONS.get(reason, reason), each["count"], left)
            yield row | {"examples": each["examples"]}
        assert left == tally["read"], f"{unit} are lost"
    left, what = summary.images, "Samples of these members, including those that were cut off"
    yield _funnel_row(0, "images", "images_found", what, 0, left)
    for number, (reason, step) in enumerate(work.config.filters.steps(), start=1):
        dropped = summary.dropped.get(reason, 0)
        left -= dropped
        yield _funnel_row(number, "images", reason, step.summary, dropped, left)
    assert left == summary.kept, "an image was dropped for a reason that no filter gives"


def _funnel_row(step: int, unit: str, reason: str, what: str, dropped: int, left: int) -> dict[str, Any]:
    return {"step": step, "unit": unit, "reason": reason, "what": what, "dropped": dropped, "left": left}


def _reject(work: StageWork, reason: str, row: dict[str, Any]) -> dict[str, Any]:
    traits = next(step.traits for name, step in work.config.filters.steps() if name == reason)
    beside = _kept_photos(work, row) if "compares_embeddings" in traits else []
    return {
        "key": row["key"] or f"the rest of {row['shard']}",
        "subject": row["subject"],
        "why": row["error"] or row["note"],
        "thumb_b64": "" if row["error"] or "hides_photos" in traits else _thumb(work.read_image(row)),
        "beside_b64": [_thumb(work.read_image(other)) for other in beside],
    }


def _kept_photos(work: StageWork, dropped: dict[str, Any]) -> list[dict[str, Any]]:
    """Return up to two kept photos of the same subject, those with the nearest perceptual hashes."""
    subject = dropped["subject"]
    place = subject_hash(subject)
    rows = work.read_plan(work.partition_of(subject), "images", (place, place + 1))
    kept = rows.filter(pc.and_(pc.is_null(rows["drop_reason"]), pc.equal(rows["subject"], subject))).to_pylist()
    return sorted(kept, key=lambda row: (row["phash"] ^ dropped["phash"]).bit_count())[:2]


def _triplets(version: Store, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row, files in zip(rows, triplet_files.read_files(version, rows), strict=True):
        if isinstance(files, InputError):
            raise files
        yield {
            **{name: row[name] for name in ("triplet_id", "prompt", "subject", "split")},
            "target_b64": _thumb(files.target),
            "references_b64": [_thumb(data) for data in files.references],
            "similarities": [round(float(value), 3) for value in row["reference_similarities"]],
        }


def _thumb(data: bytes) -> str:
    try:
        image = decode(data, _THUMB_SIDE)
    except ImageError:
        return ""
    small = fit_within(image, _THUMB_SIDE)[: 3 * _THUMB_SIDE, : 3 * _THUMB_SIDE]
    return base64.b64encode(encode_jpeg(small, quality=85)).decode()


def _shares(reason: str, *reports: dict[str, Any]) -> list[float]:
    return [round(each["counts"]["dropped"].get(reason, 0) / each["counts"]["images_in"], 4) for each in reports]


def _distance(one: list[int], other: list[int]) -> float:
    if not sum(one) or not sum(other):
        return float(sum(one) != sum(other))
    return round(float(np.abs(np.divide(one, sum(one)) - np.divide(other, sum(other))).sum() / 2), 3)
