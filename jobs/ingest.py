"""Put photographs of known subjects into raw shards (WebDataset), their bytes untouched.

The source is a folder with one folder per subject, <subject>/<nn>.jpg (also .jpeg, .png, .webp). Beside an image there
may be <nn>.txt with its caption, or <nn>.json with any of "caption", "class", "source", "licence". Without them the
class is the folder's name (toy_car_03 -> "toy car") and the caption "a photo of a toy car". Other files are
listed as skipped; an image that cannot be decoded is kept, and curation drops it with a reason. Links are
followed within the source; one that leads out of it is skipped by name.

  python jobs/ingest.py --source ./photos --raw file:///data/raw --licence CC-BY-4.0

The sample world is rendered instead: subjects, views, places and captions that are known exactly, with planted defects
whose truth stands in _truth.json.

  python jobs/ingest.py --source sample --raw s3://bucket/raw --sample.subjects 500 --sample.seed 3

A customer's folder of four photos of one thing that no other world holds:

  python jobs/ingest.py --source sample --raw ./raw-7 --photos ./customer --sample.subjects 1 --sample.views 4 \\
      --sample.seed 7 --sample.defects false --sample.shapes '[duck]'

The same command again resumes, or says that it is done.
"""

from pipelines.entry import run_job
from pipelines.ingest import IngestConfig, ingest

_SHOWN = 5


def main(config: IngestConfig) -> int:
    """Ingest, and print what is there."""
    result = ingest(config)
    for file, reason in list(result["skipped"].items())[:_SHOWN]:
        print(f"skipped: {file}, {reason}")
    if len(result["skipped"]) > _SHOWN:
        print(f"skipped: {len(result['skipped']) - _SHOWN} more, see ingest.json")
    print(f"{result['images']} images of {result['subjects']} subjects in {result['shards']} shards at {config.raw}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(IngestConfig, main, __doc__))
