"""Turn raw shards into an immutable snapshot of triplets (target, prompt, references of the same subject).

Reads every *.tar below --raw (WebDataset: key.jpg + key.json with "subject", "class", "caption", …), judges each image,
pairs the photos of a subject whose similarity lies in a band, and publishes <dataset>/v0001, v0002, …: triplet shards,
triplets.parquet, images.parquet (every image, with the reason where it was dropped), report.html and report.json, and
manifest.json last. Images that came in = images kept + images dropped, by reason.

  python jobs/curate.py --raw file:///data/raw --dataset file:///data/dataset
  python jobs/curate.py --raw s3://bucket/raw --dataset s3://bucket/dataset --config jobs/configs/curate.yaml
  python jobs/curate.py --raw ./raw --dataset ./dataset --filters.too-small.min-short-side-px 512 \\
      --filters.skip '[blurry]' --plan.max-references 3 --shards.image-size null

The same command again publishes nothing if nothing is new, and goes on where it was if it was killed. With other raw
shards or other settings it makes the next version. To see every setting: --print_config.
"""

from pipelines.curate import CurateConfig, curate
from pipelines.entry import run_job


def main(config: CurateConfig) -> int:
    """Curate, and print what is there."""
    result = curate(config)
    counts = result.manifest["counts"]
    dropped = ", ".join(f"{reason} {n}" for reason, n in counts["dropped"].items()) or "none"
    triplets = counts["triplets"]
    print(f"images: {counts['images_in']} in, {counts['images_kept']} kept; dropped: {dropped}")
    print(f"report: {result.dataset}/v{result.version:04d}/report.html")
    state = "published" if result.new else "nothing new: still"
    print(
        f"{state} v{result.version:04d}: {triplets['train']} + {triplets['validation']} triplets (train + validation)"
        f" of {counts['subjects']} subjects"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(CurateConfig, main, __doc__))
