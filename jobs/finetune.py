"""Train a personal model of one subject from 4 to 20 photos, evaluate it, and register it under its customer.

It makes a LoRA adapter on the base model, images before and after, and the model CUSTOMER--SUBJECT with its champion.
Two of the photos (of 4, one) are kept from training, and the model is judged on them alone; --holdout 0 trains on all.
The photos lie in one folder for the subject, here /photos/mug/mug/01.jpg and so on:

  python jobs/finetune.py check --photos file:///photos/mug

  python jobs/finetune.py run --customer acme --subject mug --photos file:///photos/mug --store s3://bucket/store \\
      --model models:/lookalike-mini@champion --distractors s3://bucket/dataset --tracking http://127.0.0.1:5000
"""

from pipelines.entry import run_subcommand
from pipelines.finetune import CheckConfig, FinetuneConfig, check, finetune


def main(config: FinetuneConfig) -> int:
    """Finetune, and print the model's name."""
    result = finetune(config)
    champion = result["champion"]  # as the registry says now
    if not result["promoted"]:
        state = "refused by the gate"
    elif champion == result["version"]:
        state = "champion"
    else:
        state = f"promoted, and not champion now (champion: {champion or 'none'})"
    if not result["promoted"] and result.get("verdict"):  # results of earlier versions have no such sentence
        print(result["verdict"])
    print(f"models:/{result['model']}/{result['version']}: {state}; bundle {result['bundle_uri']}")
    return 0


def main_check(config: CheckConfig) -> int:
    """Check the photos, and print what they are."""
    photos = check(config)
    what = "raw shards, whose photos a finetune counts" if photos.number is None else f"{photos.number} photos"
    print(f"{what}; a finetune takes them: {config.photos}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_subcommand({"run": main, "check": main_check}, __doc__))
