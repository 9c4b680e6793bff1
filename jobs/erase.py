"""Erase a customer, or one of its subjects: photos, models, runs, images; and prove it by a signed receipt.

First see what would go; this changes nothing:

  python jobs/erase.py plan --customer acme --store s3://bucket/store --tracking sqlite:////data/mlflow.db

Then erase. Jobs that work for the customer stop, and new ones are refused, until it is finished. Killed at any moment,
the same command completes it. LOOKALIKE_SIGNING_KEY holds the operator's Ed25519 key (openssl genpkey -algorithm
ed25519), which signs the receipt, receipts/ID.json in the store; the public key lies beside it. --webhook URL receives
the event finetune.erased:

  python jobs/erase.py run --customer acme --subject mug --store s3://bucket/store --tracking sqlite:////data/mlflow.db

It removes all objects below customers/CUSTOMER/ with their old versions and unfinished uploads, outputs of jobs
elsewhere in the store that name the customer's models, the registered models with versions and aliases, runs (also
those that were deleted in MLflow before), artifacts, traces, and caches of the nodes. Photos that shared data sets hold
go to the take-down list (--take-down), and models that learned from them are named in the receipt with the commands
that train them anew. --requests names folders of requests of fleets, from which the customer's files and records go.
Not covered: Ray's own logs, backups, and copies that other programs made; a receipt says so. So give customers' ids in
configuration files (--config) rather than on command lines, which Ray keeps in its job table.

An MLflow server's database cannot be reached through the server: name the database itself, or run the command that the
job prints, `mlflow gc`, and then the same job again.

  python jobs/erase.py verify s3://bucket/store/receipts/ID.json --public-key operator.pub --customer acme

Erase what has expired (`expires_at` of a finetune's request); without --delete it lists what is due:

  python jobs/erase.py sweep --store s3://bucket/store --tracking sqlite:////data/mlflow.db --delete
"""

from collections.abc import Callable

from pipelines.entry import EXIT_ERROR, run_subcommand
from pipelines.erase import EraseConfig, PlanConfig, SweepConfig, VerifyConfig, erase, plan, sweep, verify_receipt
from pipelines.erase.show import lines


def main_plan(config: PlanConfig) -> int:
    """List what would be removed."""
    inventory = plan(config)
    print("\n".join(lines(inventory)))
    print("nothing to erase" if inventory.is_empty else "nothing was removed; jobs/erase.py run removes it")
    return 0


def main(config: EraseConfig) -> int:
    """Erase, and print the receipt's place."""
    outcome = erase(config)
    if outcome.receipt is None:
        print("nothing of it is here, so nothing was erased and no receipt is written")
        return 0
    if outcome.inventory is not None:
        print("\n".join(lines(outcome.inventory)))
    print(f"erased, and nothing is left; receipt {outcome.receipt}")
    return 0


def main_sweep(config: SweepConfig) -> int:
    """Erase what has expired, or list it."""
    swept = sweep(config)
    for row in swept:
        print(f"{row.state:8} {row.customer}/{row.subject or '*'}: {row.why}")
    due = sum(row.state in ("due", "erased") for row in swept)
    print(f"{due} of {len(swept)} subjects with a request {'were erased' if config.delete else 'are due'}")
    return EXIT_ERROR if any(row.state == "failed" for row in swept) else 0


def main_verify(config: VerifyConfig) -> int:
    """Check a receipt."""
    receipt = verify_receipt(config)
    objects = sum(kind["count"] for kind in receipt["objects"].values())
    by = "the operator's key" if config.public_key else "the key in it; name --public-key to know whose that is"
    print(f"{objects} objects and {receipt['photos']['count']} photos were erased, finished {receipt['finished']}")
    print(f"the receipt is valid, signed by {by}")
    return 0


COMMANDS: dict[str, Callable[..., int | None]] = {
    "plan": main_plan,
    "run": main,
    "sweep": main_sweep,
    "verify": main_verify,
}

if __name__ == "__main__":
    raise SystemExit(run_subcommand(COMMANDS, __doc__))
