"""Write finished evaluations for tests of human preference: drawn subjects, and images of models of known quality."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.config import fingerprint
from lookalike.data.images import encode_png
from lookalike.data.triplets import SCHEMA
from lookalike.evaluation.measurements import MEASUREMENTS, Measurement, summarise, to_parquet
from lookalike.evaluation.measurements import SCHEMA as MEASURED
from lookalike.evaluation.scores import SCORES, Scores, Source
from lookalike.storage import open_store, publish, read_manifest, version_store
from pipelines.preference.choices import FORMAT, Choice, Export, checksum
from pipelines.preference.pairs import Key
from tests.drawn import draw, jpeg
from tests.snapshots import write_pack, write_tables

PROMPT = "thing {} & <img src=x onerror=\"document.title='run'\"> </script> on “grass”"


def write_dataset(folder: Path, subjects: int = 4, views: int = 3) -> Path:
    """A snapshot of drawn things, all held out; a triplet for each view, with two references."""
    store = version_store(open_store(str(folder)), 1)
    files = {(s, v): jpeg(draw(s, v)) for s in range(subjects) for v in range(views + 2)}
    pack, samples = write_pack(store.parent, ((f"{s}-{v}", {"jpg": data}) for (s, v), data in files.items()))
    places = dict(zip(files, (sample.members["jpg"] for sample in samples), strict=True))
    rows = []
    for subject, view in ((s, v) for s in range(subjects) for v in range(views)):
        shown = [(subject, view), (subject, views), (subject, views + 1)]
        row: dict[str, Any] = {"triplet_id": f"thing{subject}-{view}", "split": "validation", "class_name": "thing"}
        row |= {"subject": f"thing{subject}", "prompt": PROMPT.format(f"{subject}-{view}"), "target_image": ""}
        row |= {"reference_images": ["", ""], "reference_similarities": [0.8, 0.8]}
        row |= {"target_shard": pack, "reference_shards": [pack, pack]}
        hashes = [hashlib.sha256(files[photo]).hexdigest() for photo in shown]
        row |= {"target_sha256": hashes[0], "reference_sha256s": hashes[1:]}
        for what in ("offset", "length"):
            values = [getattr(places[photo], what) for photo in shown]
            row |= {f"target_{what}": values[0], f"reference_{what}s": values[1:]}
        rows.append(row)
    publish(
        open_store(str(folder)), 1, {"version": 1, **write_tables(store, pa.Table.from_pylist(rows, schema=SCHEMA))}
    )
    return folder


def write_evaluation(
    folder: Path, dataset: Path, quality: float, subjects: int = 4, views: int = 3, side: int = 96, **changes: Any
) -> Path:
    """An evaluation of a model whose images blend the subject with noise; ``identity`` is its ``quality``, nearly."""
    store, out = open_store(str(dataset)), open_store(str(folder))
    rows = []
    for subject, view in ((s, v) for s in range(subjects) for v in range(views)):
        case = f"thing{subject}-{view}"
        rng = np.random.default_rng([subject, view, round(quality * 1000)])
        noise = rng.integers(0, 256, (side, side, 3))
        image = quality * draw(subject, view + 7, side).astype(float) + (1 - quality) * noise
        out.write(f"images/1.0-0.5/{case}.png", encode_png(image.clip(0, 255).astype(np.uint8), {"model": "secret"}))
        rows.append(Measurement(case, f"thing{subject}", "identity", quality + 0.01 * float(rng.normal())))
        rows.append(Measurement(case, f"thing{subject}", "mllm_only/identity", 0.5))
        rows.append(Measurement(case + "#0", f"thing{subject}", "loss_right", 0.5))
    table = pa.Table.from_pylist([{"unit": 0, **vars(row)} for row in rows], schema=MEASURED)
    scores: dict[str, Any] = {
        "bundle": Source(f"file:///secret/{quality}", "0" * 64),
        "suite": Source(store.uri, fingerprint(read_manifest(store, 1)), 1),
        "conditions": "right",
        "metrics": summarise(rows),
        "config": {"stages": ["1.0/0.5", "mllm_only"], "split": "validation", "seed": 0},
        **changes,
    }
    data = to_parquet(table, Scores(**scores).evaluation())
    out.write(MEASUREMENTS, data)
    out.write(SCORES, Scores(**scores, measurements_sha256=hashlib.sha256(data).hexdigest()).to_json())
    return folder


def judge(key: Key, name: str, taste: dict[str, float], seed: int = 0, attentive: bool = True) -> Export:
    """An export of a judge who prefers the model of the higher ``taste``, by a Bradley-Terry choice."""
    rng = np.random.default_rng([seed, *name.encode()])
    choices = []
    for pair in key.pairs.values():
        values = {**taste, "subject": 9.0, "other": -9.0}
        first = 1 / (1 + np.exp(values[pair.second] - values[pair.first])) if attentive else 0.5
        for criterion in key.criteria:
            choices.append(Choice(pair.id, criterion, "first" if rng.random() < first else "second", "first", 900))
    export = Export(FORMAT, key.page, name, choices, "")
    return Export(FORMAT, key.page, name, choices, checksum(export))
