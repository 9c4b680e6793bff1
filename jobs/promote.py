"""Let the gate decide whether a bundle becomes champion, and record why.

The scores are held against fixed floors, and against those of the current champion if there is one. If every check
passes, the bundle becomes the champion of the registered model: an entry in the promotion log, and the MLflow alias
`champion` that shows it. If not, the champion stays. Either way decision.json says which checks were made and why they
came out as they did, and the job ends with 0; with --require-promoted a refusal ends with 3.

  python jobs/promote.py --model lookalike-mini --scores file:///runs/toys-1/scores \\
      --out file:///runs/toys-1/promotion --tracking sqlite:////runs/mlflow.db

If the champion turns out to be bad, --rollback returns to the one before (--rollback-to VERSION to an earlier one). If
the promotion log or the champion is lost without a copy, --begin-anew REASON begins the log anew:

  python jobs/promote.py --model lookalike-mini --rollback --out file:///runs/rollback-1
  python jobs/promote.py … --begin-anew "the store of the log was lost"

A bundle that was moved is registered at its new place by promoting it again with --bundle.

Floors and comparisons are settings:

  python jobs/promote.py … --gate.floors '[{metric: loss_gap, above: 0.002}, {metric: loss_gap, bound: n, above: 255}]'

Then `models:/lookalike-mini@champion` is a model for jobs/generate.py and jobs/finetune.py.
"""

from pipelines.entry import EXIT_REFUSED, run_job
from pipelines.promote import PromoteConfig, promote


def main(config: PromoteConfig) -> int:
    """Decide, and print the checks."""
    decision = promote(config)
    for check in decision["checks"]:
        print(f"{'ok  ' if check['passed'] else 'FAIL'} {check['name']:28} {check['why']}")
    name, version, champion = decision["model"], decision["version"], decision["champion"]  # read from the registry now
    shown = f"models:/{name}/{champion}" if champion else "none"
    if not decision["promoted"]:
        verdict = f"was refused (champion: {shown})"
    elif champion == version:
        verdict = f"is champion (champion before: {decision['champion_before'] or 'none'})"
    else:
        verdict = f"was promoted, and is not champion now (champion: {shown})"
    print(f"models:/{name}/{version} {verdict}")
    return EXIT_REFUSED if config.require_promoted and not decision["promoted"] else 0


if __name__ == "__main__":
    raise SystemExit(run_job(PromoteConfig, main, __doc__))
