"""Train a personal model of one subject from 4 to 20 photos, evaluate it, and register it under its customer.

It gives a LoRA adapter on the base model, images before and after, and the model CUSTOMER--SUBJECT with its champion.
The photos lie in one folder for the subject, here /photos/mug/mug/01.jpg and so on:

  python jobs/finetune.py --customer acme --subject mug --photos file:///photos/mug --store s3://bucket/store \\
      --model models:/lookalike-mini@champion --distractors s3://bucket/dataset --tracking http://127.0.0.1:5000
"""

from pipelines.entry import run_job
from pipelines.finetune import FinetuneConfig, finetune


def main(config: FinetuneConfig) -> int:
    """Finetune, and print the model's name."""
    result = finetune(config)
    champion = result["champion"]  # read from the registry now
    if not result["promoted"]:
        state = "refused by the gate"
    elif champion == result["version"]:
        state = "champion"
    else:
        state = f"promoted, and not champion now (champion: {champion or 'none'})"
    print(f"models:/{result['model']}/{result['version']}: {state}; bundle {result['bundle_uri']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(FinetuneConfig, main, __doc__))
