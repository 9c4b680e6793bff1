"""Follow the lineage of a model or a photo. Changes nothing but an alias that lags behind its promotion log.

From a model to its version, scores and decision, training run and configuration, snapshot, raw shards and photos, and
then the same of its base, down to the pretrained weights:

  python jobs/trace.py model models:/lookalike-mini@champion
  python jobs/trace.py model models:/acme--duck@champion --photos --json > duck.jsonl
  python jobs/trace.py model file:///runs/toys-1/bundle --store file:///runs

From a photo to the snapshots that hold it, the runs that may have learned from it, the versions of models that these
made, also by further training, and the outputs with images that those models generated. The photo is named by the
SHA-256 of its bytes in the raw shards, or by its file. With --dataset all snapshots of a data set are searched, with
--store those that the training runs below a store have read:

  python jobs/trace.py image 3f9c02aa6b71 --store file:///runs
  python jobs/trace.py image ./duck.jpg --dataset file:///data/dataset --store file:///runs --json

One row is one line, with --json a JSON object, so that the output of a large data set can be piped. A link that is
missing is a row with its reason; what was moved is found by its hash below --store or --dataset.

"May have learned": training triplets of the run's snapshot use the photo. A run with fewer samples than triplets has
seen a part of them only.
"""

from collections.abc import Iterable
from typing import Any

from pipelines.entry import run_subcommand
from pipelines.trace import TraceImageConfig, TraceModelConfig, render, trace_image, trace_model


def main_model(config: TraceModelConfig) -> int:
    """Print what a model was made from."""
    return _print(trace_model(config), as_json=config.json)


def main_image(config: TraceImageConfig) -> int:
    """Print what was made of a photo."""
    return _print(trace_image(config), as_json=config.json)


def _print(rows: Iterable[dict[str, Any]], *, as_json: bool) -> int:
    count = missing = 0
    for row in rows:
        print(render(row, as_json=as_json))
        count, missing = count + 1, missing + ("reason" in row)
    if not as_json:
        print(f"{count} rows, {missing} of them missing links")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_subcommand({"model": main_model, "image": main_image}, __doc__))
