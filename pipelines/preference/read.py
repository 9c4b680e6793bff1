"""Read the judges' choices, and compute what people prefer."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lookalike.config import fingerprint
from lookalike.errors import InputError
from lookalike.evaluation.preference import (
    PRIOR_SD,
    Vote,
    agreement_of_judges,
    metric_agreement,
    strengths,
    win_rates,
)
from lookalike.storage import open_store
from lookalike.storage.claim import read_result, run_once, write_result
from pipelines.preference.choices import Export, assess, read_exports, votes_of
from pipelines.preference.config import ReadConfig
from pipelines.preference.pairs import Key, read_key
from pipelines.preference.text import to_text

RESULT = "preference.json"
TEXT = "preference.md"
_TYPES: dict[str, Any] = {"models": dict, "criteria": dict, "judges": list, "left_out": list, "method": dict}


def read(config: ReadConfig) -> dict[str, Any]:
    """Write ``preference.md`` and, last, ``preference.json``; returns the latter's content.

    Raises:
        InputError: the key or all files of choices are missing or damaged, or no judge passes the attention checks.
        ConflictError: ``config.out`` holds the result of other choices.
    """
    key = read_key(config.pairs)
    exports, left_out = read_exports(config.choices, key)
    store = open_store(config.out)

    def work(run: str) -> dict[str, Any]:
        result = _result(config, key, exports, left_out)
        store.write(TEXT, (to_text(result) + "\n").encode())
        write_result(store, RESULT, result, run)
        return read_result(store, RESULT, run, _TYPES)[0]

    inputs = {"page": key.page, "choices": _hash([export for _, export in exports.values()])}
    return run_once(
        store,
        RESULT,
        config,
        content={"inputs": inputs},
        earlier=lambda run: read_result(store, RESULT, run, _TYPES)[0],
        work=work,
    )


def _result(
    config: ReadConfig, key: Key, exports: dict[str, tuple[str, Export]], left_out: Sequence[dict[str, str]]
) -> dict[str, Any]:
    judges = [assess(where, export, key, config.min_right, config.min_consistent) for where, export in exports.values()]
    kept = [exports[judge.judge][1] for judge in judges if judge.kept]
    if not kept:
        raise InputError(
            f"no judge passes the attention checks: {'; '.join(f'{j.judge}: {j.reason}' for j in judges)[:600]}",
            value=config.min_right,
            fix="ask other judges, or lower --min_right or --min_consistent",
        )
    criteria = {}
    for criterion in key.criteria:
        votes = [vote for export in kept for vote in votes_of(export, key, criterion)]
        if votes:
            criteria[criterion] = _statistics(votes, key, config.seed)
    if not criteria:
        raise InputError("the judges chose between no models", value=config.pairs, fix="ask them to answer more pairs")
    return {
        "page": key.page,
        "models": key.models,
        "criteria": criteria,
        "judges": [asdict(judge) for judge in judges],
        "left_out": list(left_out),
        "method": {"min_right": config.min_right, "min_consistent": config.min_consistent, "prior_sd": PRIOR_SD},
    }


def _statistics(votes: list[Vote], key: Key, seed: int) -> dict[str, Any]:
    models = sorted({name for vote in votes for name in (vote.first, vote.second)})
    pairs = {vote.pair for vote in votes}
    metrics = sorted({metric for pair in pairs for metric in key.pairs[pair].values})
    agreements = [
        metric_agreement(
            votes,
            {pair: key.pairs[pair].values[metric] for pair in pairs if metric in key.pairs[pair].values},
            metric,
            seed=seed,
        )
        for metric in metrics
    ]
    return {
        "votes": len(votes),
        "pairs": len(pairs),
        "subjects": len({vote.subject for vote in votes}),
        "judges": len({vote.judge for vote in votes}),
        "win_rates": [asdict(rate) for rate in win_rates(votes, models, seed=seed)],
        "strengths": [asdict(s) for s in strengths(votes, models, seed=seed)] if len(models) > 2 else [],
        "alpha": agreement_of_judges(votes),
        "metrics": [asdict(agreement) for agreement in agreements if agreement is not None],
    }


def _hash(exports: Sequence[Export]) -> str:
    return hashlib.sha256("".join(sorted(fingerprint(asdict(export)) for export in exports)).encode()).hexdigest()
