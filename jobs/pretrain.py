"""Pretrain a small preset's VAE (to reconstruct images) or its MLLM (to caption them), from raw shards, in one process.

The part goes to <out>/vae or <out>/mllm in its library's own format; <out>/<part>-run holds the state, the losses and
the metrics on held-out subjects. Killed and started again, the same command resumes.

  python jobs/ingest.py --source sample --raw ./world-50 --sample.subjects 640 --sample.seed 50 --sample.defects false
  python jobs/pretrain.py --part vae --raw ./world-50 --out ./parts --fit.steps 3000 --fit.learning_rate 1.5e-3
  python jobs/pretrain.py --part mllm --raw ./world-50 --out ./parts --fit.steps 2500 --fit.batch_size 24
"""

from pipelines.entry import run_job
from pipelines.pretrain import PretrainConfig, pretrain


def main(config: PretrainConfig) -> int:
    """Pretrain, and print the metrics."""
    for name, value in pretrain(config).items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(PretrainConfig, main, __doc__))
