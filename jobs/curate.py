"""Turn raw shards into an immutable snapshot of triplets (target, prompt, references of the same subject).

Reads every *.tar that --raw names, plain or compressed (.gz, .bz2, .xz, .zst, .lz4), in which samples are key.jpg +
key.json with "subject", "class", "caption", … (WebDataset);
judges each image, pairs the photos of a subject whose similarity lies in a band, and publishes <dataset>/v0001, v0002
and so on: triplet shards, triplets.parquet, images.parquet (every image, with the reason where it was dropped),
report.html and report.json, and manifest.json last. Images that came in = images kept + images dropped, by reason;
objects and members of tars that give no image are named as passed over.

  python jobs/curate.py --raw file:///data/raw --dataset file:///data/dataset
  python jobs/curate.py --raw s3://bucket/raw --dataset s3://bucket/dataset --config jobs/configs/curate.yaml
  python jobs/curate.py --raw 's3://bucket/raw/shard-{000000..000063}.tar.gz' --dataset s3://bucket/dataset
  python jobs/curate.py --raw ./raw --dataset ./dataset --filters.too-small.min-short-side-px 512 \\
      --filters.skip '[blurry]' --plan.max-references 3 --shards.image-size null

Photographs without a subject, and filters and captions by a model, all off until they are asked for:

  python jobs/curate.py --raw ./raw --dataset ./dataset --labels.found.min-similarity 0.66
  python jobs/curate.py --raw ./raw --dataset ./dataset --filters.not-safe.max-score 0.8 \\
      --filters.overlaid-text.max-share 0.02 --captioner.model Salesforce/blip-image-captioning-base

The same command again publishes nothing if nothing is new, and resumes if it was killed. With other raw
shards or other settings it makes the next version. To see every setting: --print_config.

While one run is at work another one on the same dataset says so and leaves with exit code 4. A run that died is taken
over from at once on the same machine, and elsewhere a minute after its last sign of life.

Two more things to ask, which change nothing (each with a --help of its own, and --json for programs):

  python jobs/curate.py --diff 1 2 --dataset s3://bucket/dataset      # what changed between two snapshots, and why
  python jobs/curate.py --trace 3f9c02aa --dataset ./dataset          # where a triplet comes from, what uses an image
"""

import dataclasses
import json
import sys

from pipelines.curate import CurateConfig, curate, inventory
from pipelines.curate.diff import DiffConfig, diff, render_diff
from pipelines.curate.takedown import entry_lines
from pipelines.curate.trace import TraceConfig, render_trace, trace
from pipelines.entry import run_job


def main(config: CurateConfig) -> int:
    """Curate, and print what is there."""
    result = curate(config)
    counts = result.manifest["counts"]
    dropped = ", ".join(f"{reason} {n}" for reason, n in counts["dropped"].items()) or "none"
    triplets = counts["triplets"]
    for line in inventory.lines(result.passed_over):
        print(line)
    print(f"images: {counts['images_in']} in, {counts['images_kept']} kept; dropped: {dropped}")
    for line in entry_lines(result.manifest["taken_down"]):
        print(line)
    print(f"report: {result.dataset}/v{result.version:04d}/report.html")
    state = "published" if result.new else "nothing new: still"
    print(
        f"{state} v{result.version:04d}: {triplets['train']} + {triplets['validation']} triplets (train + validation)"
        f" of {counts['subjects']} subjects"
    )
    return 0


def main_diff(config: DiffConfig) -> int:
    """Print what changed."""
    found = diff(config)
    print(json.dumps(dataclasses.asdict(found), indent=1) if config.json else render_diff(found))
    return 0


def main_trace(config: TraceConfig) -> int:
    """Print where it comes from, or what uses it."""
    found = trace(config)
    print(json.dumps(found, indent=1) if config.json else render_trace(found))
    return 0


def _ask(flag: str, numbers: int) -> bool:
    """Whether ``flag`` is asked; several numbers behind it become one list, and before --help it stands alone."""
    if flag not in sys.argv:
        return False
    place = sys.argv.index(flag) + 1
    if "--help" in sys.argv:
        del sys.argv[place - 1]
    elif numbers > 1:
        sys.argv[place : place + numbers] = [f"[{','.join(sys.argv[place : place + numbers])}]"]
    return True


if __name__ == "__main__":
    if _ask("--diff", 2):
        raise SystemExit(run_job(DiffConfig, main_diff, DiffConfig.__doc__))
    if _ask("--trace", 1):
        raise SystemExit(run_job(TraceConfig, main_trace, TraceConfig.__doc__))
    raise SystemExit(run_job(CurateConfig, main, __doc__))
