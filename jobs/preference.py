"""Let people judge: a page of blind pairs of images, and the statistics of their choices.

From finished evaluations on one suite, a page that works in any browser, also on a phone, and loads nothing:

  python jobs/preference.py make --a file:///runs/base/scores --b file:///runs/tuned/scores --out file:///runs/people

Send preference.html to the judges, but not pairs.json, its key. Each judge saves a file of choices at the end. Their
files, in one folder, give win rates, Bradley-Terry strengths of more than two models, the agreement of the judges, and
the agreement of each metric with them:

  python jobs/preference.py read --pairs file:///runs/people --choices ./choices --out file:///runs/people/result

With other questions (each is asked of every pair):

  python jobs/preference.py make … --criteria identity --criteria prompt --questions '{identity: "Which is my dog?"}'
"""

from collections import Counter

from pipelines.entry import run_subcommand
from pipelines.preference import MakeConfig, ReadConfig, make, read, to_text


def main_make(config: MakeConfig) -> int:
    """Make the page, and print what is on it."""
    key = make(config)
    kinds = Counter(pair["kind"] for pair in key["pairs"])
    print(
        f"{kinds['models']} pairs of {', '.join(key['models'])}, {kinds['repeat']} repeated, {kinds['check']} attention"
        f" checks, {len(key['left_out'])} cases left out; a page of {key['mib']:.1f} MiB at {config.out}"
    )
    return 0


def main_read(config: ReadConfig) -> int:
    """Read the choices, and print the results."""
    print(to_text(read(config)))
    print(f"results at {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_subcommand({"make": main_make, "read": main_read}, __doc__))
