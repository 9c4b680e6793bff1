"""Put photos of known subjects into raw shards (WebDataset), without changing their bytes.

The source is a folder with one folder per subject, <subject>/<nn>.jpg (also .jpeg, .png, .webp). Beside a photo there
may be <nn>.txt with its caption, or <nn>.json with any of "caption", "class", "source", "licence". Without them the
class is the folder's name (toy_car_03 -> "toy car") and the caption "a photo of a toy car". Other files are
listed as skipped; a photo that cannot be decoded is kept, and curation drops it with a reason. Links are
followed within the source; one that leads out of it is listed as skipped.

  python jobs/ingest.py --source ./photos --raw file:///data/raw --licence CC-BY-4.0

Instead of photos the sample world can be rendered: subjects, views, places and captions are known exactly, and
_truth.json lists its planted defects.

  python jobs/ingest.py --source sample --raw s3://bucket/raw --sample.subjects 500 --sample.seed 3

A customer's folder of four photos of one subject that no other world contains:

  python jobs/ingest.py --source sample --raw ./raw-7 --photos ./customer --sample.subjects 1 --sample.views 4 \\
      --sample.seed 7 --sample.defects false --sample.shapes '[duck]'

The same command again resumes, or returns the finished result.
"""

from pipelines.entry import run_job
from pipelines.ingest import IngestConfig, ingest

_SHOWN = 5


def main(config: IngestConfig) -> int:
    """Ingest, and print the number of photos."""
    result = ingest(config)
    for file, reason in list(result["skipped"].items())[:_SHOWN]:
        print(f"skipped: {file}, {reason}")
    if len(result["skipped"]) > _SHOWN:
        print(f"skipped: {len(result['skipped']) - _SHOWN} more, see ingest.json")
    print(f"{result['images']} images of {result['subjects']} subjects in {result['shards']} shards at {config.raw}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(IngestConfig, main, __doc__))
