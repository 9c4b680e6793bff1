"""Train a subject-driven generator on a curated data set: Ray Train, DeepSpeed ZeRO-3, the paper's two phases.

Writes checkpoints, metrics, an exported bundle (diffusers/transformers/peft folders) and an MLflow run. Started again
with the same --run it resumes from the last checkpoint, with any number of workers.

  python jobs/train.py run --preset mini --dataset file:///data/toys --run file:///runs/toys-1 \\
      --tracking sqlite:///mlflow.db

  python jobs/train.py run --config jobs/configs/train-demo.yaml --run s3://bucket/runs/toys-2 --seed 1

What a training run would need (parameters, memory, FLOPs, days); nothing is read, downloaded or started:

  python jobs/train.py plan --config jobs/configs/train-paper.yaml --gpus 8x80
"""

from lookalike.training.config import TrainConfig
from pipelines.entry import run_subcommand
from pipelines.train.cost_report import PlanConfig, plan
from pipelines.train.run import train


def main(config: TrainConfig) -> int:
    """Train, export, and print where the bundle is."""
    result = train(config)
    print(f"bundle {result['bundle_uri']}  sha256 {result['bundle_sha256'][:12]}  after {result['steps']} steps")
    return 0


def main_plan(config: PlanConfig) -> int:
    """Print what the training run would need."""
    print(plan(config))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_subcommand({"run": main, "plan": main_plan}, __doc__))
