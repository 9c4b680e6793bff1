"""Train a subject-driven generator on a curated data set: Ray Train, DeepSpeed ZeRO-3, the paper's two stages.

Gives checkpoints, metrics, an exported bundle (diffusers/transformers/peft folders) and an MLflow run. Started again
with the same --run it resumes from the last checkpoint, with any number of workers.

  python jobs/train.py --preset mini --dataset file:///data/toys --run file:///runs/toys-1 \\
      --tracking sqlite:///mlflow.db

  python jobs/train.py --config jobs/configs/train-demo.yaml --run s3://bucket/runs/toys-2 --seed 1

With --plan it prints what a training would need, and starts nothing (--plan --help shows its own flags):

  python jobs/train.py --config jobs/configs/train-paper.yaml --plan --gpus 8x80
"""

import sys

from lookalike.training.config import TrainConfig
from pipelines.entry import run_job
from pipelines.train.run import train


def main(config: TrainConfig) -> int:
    """Train, export, and print where the bundle is."""
    result = train(config)
    print(f"bundle {result['bundle_uri']}  sha256 {result['bundle_sha256'][:12]}  after {result['steps']} steps")
    return 0


def main_plan() -> int:
    """Print the plan."""
    from pipelines.train.cost_report import (  # it builds the model, whose imports a training need not wait for
        PlanConfig,
        plan,
    )

    return run_job(PlanConfig, lambda config: print(plan(config)), PlanConfig.__doc__)


if __name__ == "__main__":
    if "--plan" in sys.argv:
        raise SystemExit(main_plan())
    raise SystemExit(run_job(TrainConfig, main, __doc__))
