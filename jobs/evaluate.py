"""Measure a model on subjects that it never saw: held-out losses, generated images, identity, a labelled grid.

Each held-out loss is measured twice on the same noise: with the sample's own conditions, and with those of another
subject. The gap says how much the model uses its conditions; its 95 % interval resamples subjects. Images are made at
several settings of the denoising stages and compared with the references by an image embedder.

  python jobs/evaluate.py --bundle file:///runs/toys-1/bundle --suite file:///data/toys --out file:///runs/toys-1/scores

A probe that any gate has to refuse, since every sample gets the conditions of another subject:

  python jobs/evaluate.py --bundle … --suite … --out file:///runs/toys-1/probe --conditions shuffled

With CLIP and DINO (a Hub id, or a folder in transformers' format), as DreamBench reports them:

  python jobs/evaluate.py … --clip openai/clip-vit-base-patch32 --dino facebook/dino-vits16

A finetune beside its base, with the subjects of another data set as strangers:

  python jobs/evaluate.py --bundle …/adapter --base …/bundle --suite …/customer --split train \\
      --distractors file:///data/toys --out …
"""

from pipelines.entry import run_job
from pipelines.evaluate import EvaluateConfig, evaluate


def main(config: EvaluateConfig) -> int:
    """Evaluate, and print what was found."""
    scores = evaluate(config)
    for name, found in sorted(scores.metrics.items()):
        print(f"{name:32}{found.mean:9.4f}  [{found.low:.4f}, {found.high:.4f}]  n={found.n}")
    shown = [
        f"{name.replace('_', ' ')} {scores.metrics[name].mean:.3f}"
        for name in ("loss_right", "loss_shuffled", "identity")
        if name in scores.metrics
    ]
    print(f"{', '.join(shown)}; scores and grid at {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(EvaluateConfig, main, __doc__))
