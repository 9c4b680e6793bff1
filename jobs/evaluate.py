"""Measure a model on subjects that it never saw: held-out losses, generated images, identity, a labelled grid.

Each held-out loss is measured twice on the same noise: with the sample's own conditions, and with those of another
subject. The gap says how much the model uses its conditions; its 95 % interval resamples subjects. Images are generated
by several denoising schedules and compared with the references by an image embedder.

  python jobs/evaluate.py run --bundle file:///runs/toys-1/bundle --suite file:///data/toys \\
      --out file:///runs/toys-1/scores

A probe that any gate has to refuse, since every sample gets the conditions of another subject:

  python jobs/evaluate.py run --bundle … --suite … --out file:///runs/toys-1/probe --conditions shuffled

With CLIP and DINO (a Hub id, or a folder in transformers' format), as DreamBench reports them:

  python jobs/evaluate.py run … --clip openai/clip-vit-base-patch32 --dino facebook/dino-vits16

With DreamBench's 25 prompts for live subjects or for objects in place of the captions of a curated data set's photos:

  python jobs/evaluate.py run --bundle … --suite file:///data/toys --prompts dreambench --prompts_per_subject 25 --out …

On a suite in a folder: DreamBench from a checkout of google/dreambooth, all 30 subjects, 25 prompts and 4 images:

  python jobs/evaluate.py run --bundle … --suite file:///data/dreambooth --subjects 30 --prompts_per_subject 25 --out …

A personal bundle beside its base, with the subjects of another data set as distractors:

  python jobs/evaluate.py run --bundle …/adapter --base …/bundle --suite …/customer --split train \\
      --distractors file:///data/toys --out …

Any number of finished evaluations, or of bundles, side by side on one suite: each metric with its interval, the paired
differences to the first model, the subjects that such a difference needs, images, and one page (compare.html):

  python jobs/evaluate.py compare file:///runs/toys-1/scores file:///runs/toys-2/scores --out file:///runs/compare

Bundles are evaluated first, below --out, with the settings of the first finished evaluation or with those given:

  python jobs/evaluate.py compare file:///runs/toys-1/bundle file:///runs/toys-2/bundle \\
      --evaluation.suite file:///data/toys --names before --names after --out file:///runs/compare
"""

from pipelines.compare import CompareConfig, compare
from pipelines.entry import run_subcommand
from pipelines.evaluate import EvaluateConfig, evaluate


def main(config: EvaluateConfig) -> int:
    """Evaluate, and print each metric with its interval."""
    scores = evaluate(config)
    for name, estimate in sorted(scores.metrics.items()):
        print(f"{name:32}{estimate.mean:9.4f}  [{estimate.low:.4f}, {estimate.high:.4f}]  n={estimate.n}")
    shown = [
        f"{name.replace('_', ' ')} {scores.metrics[name].mean:.3f}"
        for name in ("loss_right", "loss_shuffled", "identity")
        if name in scores.metrics
    ]
    print(f"{', '.join(shown)}; scores and grid at {config.out}")
    return 0


def main_compare(config: CompareConfig) -> int:
    """Compare, and print each metric with its paired differences."""
    result = compare(config)
    for line in result["lines"]:
        print(line)
    for note in result["notes"]:
        print(f"note: {note}")
    print(f"{len(result['names'])} models compared; the page is compare.html at {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_subcommand({"run": main, "compare": main_compare}, __doc__))
