"""Turn raw shards into an immutable snapshot of triplets (target, prompt, references of the same subject).

Reads every *.tar that --raw names, plain or compressed (.gz, .bz2, .xz, .zst, .lz4), in which samples are key.jpg +
key.json with "subject", "class", "caption", … (WebDataset);
judges each image, pairs the photos of a subject whose similarity lies in a band, and publishes <dataset>/v0001, v0002
and so on: tables of triplets and images (every photo, with the reason if it was dropped), report.html and report.json,
and manifest.json last. Images are stored once, in <dataset>/shards, and versions share them. Photos that came in =
photos kept + photos dropped, by reason; objects and members of tars that give no photo are listed as passed over.

  python jobs/curate.py run --raw file:///data/raw --dataset file:///data/dataset
  python jobs/curate.py run --raw s3://bucket/raw --dataset s3://bucket/dataset --config jobs/configs/curate.yaml
  python jobs/curate.py run --raw 's3://bucket/raw/shard-{000000..000063}.tar.gz' --dataset s3://bucket/dataset
  python jobs/curate.py run --raw ./raw --dataset ./dataset --filters.too-small.min-short-side-px 512 \\
      --filters.skip '[blurry]' --plan.max-references 3 --shards.image-size null

Photos without a subject, and filters and captions by a model; all are off by default:

  python jobs/curate.py run --raw ./raw --dataset ./dataset --labels.found.min-similarity 0.66
  python jobs/curate.py run --raw ./raw --dataset ./dataset --filters.not-safe.max-score 0.8 \\
      --filters.overlaid-text.max-share 0.02 --captioner.model Salesforce/blip-image-captioning-base

The same command again publishes nothing if nothing is new, and resumes if it was killed. With other raw
shards or other settings it makes the next version. `run --print_config` prints every setting.

While one run works on a dataset, another one on it ends with exit code 4. The lease of a run that died ends at once on
the same machine, and elsewhere a minute after its last heartbeat.

What changed between two snapshots and why, where a triplet comes from, and which triplets use an image; these change
nothing, and print JSON with --json:

  python jobs/curate.py diff --before 1 --after 2 --dataset s3://bucket/dataset
  python jobs/curate.py trace --id 3f9c02aa --dataset ./dataset

Export a snapshot as plain WebDataset shards, train-000000.tar and so on, for other tools. A sample is a subject: its
images and its triplets. The compose step makes triplets of samples:

  python jobs/curate.py export --dataset s3://bucket/dataset --output ./exported --split train

  def triplets(subjects):
      for sample in subjects:
          for t in json.loads(sample["json"])["triplets"]:
              yield t | {"target": sample[f"{t['target']:03d}.jpg"],
                         "references": [sample[f"{i:03d}.jpg"] for i in t["references"]]}

  webdataset.WebDataset("exported/train-{000000..000007}.tar").compose(triplets)
"""

import dataclasses

from lookalike.documents import render_json
from pipelines.curate import CurateConfig, curate, inventory
from pipelines.curate.diff import DiffConfig, diff, render_diff
from pipelines.curate.export import ExportConfig, export
from pipelines.curate.removals import entry_lines
from pipelines.curate.trace import TraceConfig, render_trace, trace
from pipelines.entry import run_subcommand


def main(config: CurateConfig) -> int:
    """Curate, and print the counts of photos and triplets."""
    result = curate(config)
    counts = result.manifest["counts"]
    dropped = ", ".join(f"{reason} {n}" for reason, n in counts["dropped"].items()) or "none"
    triplets = counts["triplets"]
    for line in inventory.lines(result.passed_over):
        print(line)
    print(f"images: {counts['images_in']} in, {counts['images_kept']} kept; dropped: {dropped}")
    for line in entry_lines(result.manifest["taken_down"], result.dataset):
        print(line)
    print(f"report: {result.dataset}/v{result.version:04d}/report.html")
    state = "published" if result.new else "nothing new: still"
    print(
        f"{state} v{result.version:04d}: {triplets['train']} + {triplets['validation']} triplets (train + validation)"
        f" of {counts['subjects']} subjects"
    )
    return 0


def main_diff(config: DiffConfig) -> int:
    """Print what changed between two snapshots."""
    changes = diff(config)
    print(render_json(dataclasses.asdict(changes)).decode().strip() if config.json else render_diff(changes))
    return 0


def main_trace(config: TraceConfig) -> int:
    """Print the origin of a triplet, or the triplets that use an image."""
    entries = trace(config)
    print(render_json(entries).decode().strip() if config.json else render_trace(entries))
    return 0


def main_export(config: ExportConfig) -> int:
    """Export a snapshot, and print the counts."""
    result = export(config)
    shards = " + ".join(f"{count} {split}" for split, count in result["shards"].items())
    counts = f"{result['triplets']} triplets of {result['subjects']} subjects, {result['images']} images"
    print(f"exported {counts} to {config.output}: {shards} shards")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_subcommand({"run": main, "diff": main_diff, "trace": main_trace, "export": main_export}, __doc__)
    )
