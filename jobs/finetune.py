"""Train a personal model of one subject from 4 to 20 photos, evaluate it, and register it under its customer.

It makes a LoRA adapter on the base model, images before and after, and the model CUSTOMER--SUBJECT with its champion.
Two of the photos (of 4, one) are kept from training, and the model is judged on them alone; --holdout 0 trains on all.
The photos are a folder, a zip archive or an S3 prefix. `check` says what they are good for, and gives time and price:

  python jobs/finetune.py check --photos photos.zip --price.table jobs/configs/prices.yaml

  python jobs/finetune.py run --customer acme --subject mug --photos photos.zip --class-name mug \\
      --store s3://bucket/store --model models:/lookalike-mini@champion --distractors s3://bucket/dataset \\
      --tracking http://127.0.0.1:5000 --key 4f1c --expires-after 30d --webhook https://acme.example/hooks

  python jobs/finetune.py status acme mug --store s3://bucket/store
  python jobs/finetune.py cancel acme mug --store s3://bucket/store
"""

import json

from pipelines.entry import EXIT_ERROR, run_subcommand
from pipelines.finetune import (
    CancelConfig,
    CheckConfig,
    DeliverConfig,
    FinetuneConfig,
    StatusConfig,
    cancel,
    check,
    deliver,
    finetune,
    status,
    table_of,
)


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
    """Check the photos, and print what they are; exit code 2 if too few can be used."""
    found = check(config)
    print(json.dumps(found, indent=1, ensure_ascii=False) if config.json else table_of(found))
    return EXIT_ERROR if found["missing"] or not found["triplets"] else 0


def main_status(config: StatusConfig) -> int:
    """Print the state, the events, and what is left to deliver."""
    found = status(config)
    if config.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    for event in found["events"]:
        print(f"{event['time']}  {event['state']:10} {json.dumps(event['data'], ensure_ascii=False)}")
    if found["webhooks"]:
        print("webhooks: " + ", ".join(f"{name} {value}" for name, value in found["webhooks"].items()))
    step = "" if found["step"] is None else f", step {found['step']} of {found['steps']}, {found['eta_s']:.0f} s left"
    expires = f", expires {found['expires_at']}" if found["expires_at"] else ""
    print(f"{found['customer']}--{found['subject']}: {found['state']} since {found['since']}{step}{expires}")
    return 0


def main_cancel(config: CancelConfig) -> int:
    """Cancel, and print what the request was."""
    state = cancel(config)
    done = "" if state == "cancelled" else "; it is finished, and stays as it is"
    print(f"{config.customer}--{config.subject}: {state}{done}")
    return 0


def main_deliver(config: DeliverConfig) -> int:
    """Deliver webhooks; exit code 2 if any was given up."""
    given_up = deliver(config)
    print(f"{config.customer}--{config.subject}: webhooks delivered, {given_up} given up")
    return EXIT_ERROR if given_up else 0


if __name__ == "__main__":
    raise SystemExit(
        run_subcommand(
            {
                "run": main,
                "check": main_check,
                "status": main_status,
                "cancel": main_cancel,
                "deliver": main_deliver,
            },
            __doc__,
        )
    )
