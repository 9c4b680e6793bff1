"""Decide by the gate whether a bundle becomes champion, and record why; return to an earlier champion; show the log.

The scores are compared with fixed floors, and with those of the current champion if there is one. If every check
passes, the bundle becomes the champion of the registered model: an entry in the promotion log, and the MLflow alias
`champion` that shows it. If not, the champion stays. In both cases decision.json has the checks with their reasons,
and the job ends with 0; with --require-promoted a refusal ends with 3.

  python jobs/promote.py run --model lookalike-mini --scores file:///runs/toys-1/scores \\
      --out file:///runs/toys-1/promotion --tracking sqlite:////runs/mlflow.db

If the champion turns out to be bad, `rollback` returns to the one before it, or with --to to an earlier version:

  python jobs/promote.py rollback --model lookalike-mini --out file:///runs/rollback-1 \\
      --reason "its images of cups are grey"

The promotion log, each champion with time, user, reason, scores and judge:

  python jobs/promote.py history --model lookalike-mini

Why a version was promoted or refused, with the values and intervals, the judge, the suite and the picture:

  python jobs/promote.py explain --model lookalike-mini --version 3

If the promotion log or the champion is lost without a copy, --begin-anew REASON begins a new log:

  python jobs/promote.py run … --begin-anew "the store of the log was lost"

With an Ed25519 key in LOOKALIKE_SIGNING_KEY (PEM, or the base64 of its 32 bytes) each entry of the log is signed. From
the first one on, unsigned entries are refused; where LOOKALIKE_TRUSTED_KEYS names public keys, also those of others.
For a log that was begun without a key, or whose key is no longer trusted, `sign` adds a signed entry that confirms it,
and prints the public key:

  openssl genpkey -algorithm ed25519 -out promotion.pem
  LOOKALIKE_SIGNING_KEY="$(cat promotion.pem)" \\
      python jobs/promote.py sign --model lookalike-mini --reason "entries are signed from now on"

If MLflow's database is lost, its registered models, versions, tags and aliases are rebuilt from the store. The first
command shows what would be registered, the second registers it; what MLflow still holds is never changed:

  python jobs/promote.py rebuild --store file:///runs
  python jobs/promote.py rebuild --store file:///runs --apply

A bundle that was moved is registered at its new place by promoting it again with --bundle.

The checks are a preset: base, or personal for a model that was measured beside its base. A list replaces the preset's:

  python jobs/promote.py run … --gate.preset personal
  python jobs/promote.py run … \\
      --gate.floors '[{metric: loss_gap, above: 0.002}, {metric: loss_gap, bound: n, above: 255}]'

Then `models:/lookalike-mini@champion` is a model for jobs/generate.py and jobs/finetune.py.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lookalike.config import canonical_json, fingerprint
from lookalike.documents import parse_record
from lookalike.evaluation.gate import Check
from lookalike.registry.evidence import Evidence
from lookalike.registry.evidence import explain as explain_checks
from pipelines.entry import EXIT_REFUSED, run_subcommand
from pipelines.promote import (
    ExplainConfig,
    HistoryConfig,
    PromoteConfig,
    RollbackConfig,
    SignConfig,
    explain,
    history,
    promote,
    rollback,
    sign,
)
from pipelines.promote.rebuild import RebuildConfig, describe, rebuild


def main(config: PromoteConfig) -> int:
    """Decide, and print the checks."""
    decision = promote(config)
    _show(decision)
    return EXIT_REFUSED if config.require_promoted and not decision["promoted"] else 0


def main_rollback(config: RollbackConfig) -> int:
    """Return to an earlier champion, and print the checks that it passed."""
    _show(rollback(config))
    return 0


def main_history(config: HistoryConfig) -> int:
    """Print the promotion log."""
    entries = history(config)
    if config.json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
        return 0
    for entry in entries:
        reason = f": {entry['reason']}" if entry["reason"] else ""
        before = f"version {entry['champion_before']}" if entry["champion_before"] else "none"
        print(
            f"{entry['number']:4} {entry['time']} version {entry['version']} {entry['kind']}"
            f" by {entry['by'] or 'unknown'}; champion before: {before}{reason}"
        )
        print(f"     {_judged(entry)}")
        for check in entry["checks"]:
            print(f"     {'ok  ' if check['passed'] else 'FAIL'} {check['name']:28} {check['why']}")
    print(f"{len(entries)} entries in the promotion log of {config.model}")
    return 0


def main_sign(config: SignConfig) -> int:
    """Sign the promotion log, and print the entry."""
    entry = sign(config)
    print(f"entry {entry['number']} of the promotion log of {config.model} is signed by the key {entry['public_key']}")
    return 0


def main_rebuild(config: RebuildConfig) -> int:
    """Rebuild, and print a line for each model with the reasons for what is not as it was."""
    count = 0
    for plan in rebuild(config):
        count += 1
        print(canonical_json(asdict(plan)) if config.json else "\n".join(describe(plan)))
    if not config.json:
        print(f"{count} models: {'MLflow agrees with the store' if config.apply else 'nothing changed; add --apply'}")
    return 0


def _judged(entry: dict[str, Any]) -> str:
    """Scores, judge and key of an entry of the log, in one line."""
    judge = (entry["evidence"] or {}).get("judge")
    return (
        f"scores {entry['scores_uri'] or 'at an unknown place'} {entry['scores_sha256'][:12]};"
        f" judge {'not recorded' if judge is None else fingerprint(judge)[:12]};"
        f" {'signed by ' + entry['public_key'] if entry['public_key'] else 'not signed'}"
    )


def main_explain(config: ExplainConfig) -> int:
    """Print why a version was promoted or refused."""
    decision = explain(config)
    if config.json:
        print(json.dumps(decision, indent=1, ensure_ascii=False))
        return 0
    checks = [Check(**check) for check in decision["checks"]]
    stored = decision["evidence"]
    evidence = None if stored is None else parse_record(Evidence, json.dumps(stored), decision["source"])
    print("\n".join(explain_checks(checks, evidence)))
    print(f"record  {decision['source']}")
    for line in decision["advice"]:
        print(f"to do   {line}")
    print(f"models:/{decision['model']}/{decision['version']}: {decision['verdict']}")
    return 0


def _show(decision: dict[str, Any]) -> None:
    for check in decision["checks"]:
        print(f"{'ok  ' if check['passed'] else 'FAIL'} {check['name']:28} {check['why']}")
    name, version, champion = decision["model"], decision["version"], decision["champion"]  # as the registry says now
    shown = f"models:/{name}/{champion}" if champion else "none"
    if not decision["promoted"]:
        verdict = f"was refused (champion: {shown})"
    elif champion == version:
        verdict = f"is champion (champion before: {decision['champion_before'] or 'none'})"
    else:
        verdict = f"was promoted, and is not champion now (champion: {shown})"
    print(f"models:/{name}/{version} {verdict}")
    if not decision["promoted"] and decision.get("verdict"):  # decisions of earlier versions have no such sentence
        print(decision["verdict"])


COMMANDS: dict[str, Callable[..., int | None]] = {
    "run": main,
    "rollback": main_rollback,
    "history": main_history,
    "sign": main_sign,
    "rebuild": main_rebuild,
    "explain": main_explain,
}

if __name__ == "__main__":
    raise SystemExit(run_subcommand(COMMANDS, __doc__))
