"""Run the demo: the commands of demo.yaml in order, each as a job on a local Ray cluster.

    make demo                        # the rendered sample world, into ./.demo
    make demo PHOTOS=DIR             # your own photos (<subject>/<nn>.jpg), into ./.demo-photos
    python infra/local/stack.py up && python infra/demo/demo.py --stack .local      # on S3 and an MLflow server

Every step is a command that a user can type: `ray job submit … -- python jobs/x.py …`. The cluster is started for the
demo and stopped at its end, also after an error or Ctrl-C; the stack of --stack keeps running. The same command resumes
where it stopped.
"""

import argparse
import json
import os
import re
import shlex
import signal
import string
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from cluster import Cluster, JobFailedError, exports

from lookalike.documents import render_json
from lookalike.storage import locate_object, read_object

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
CUSTOMER = "acme"


@dataclass(frozen=True)
class StepResult:
    """Time, memory and last output of a step."""

    step: str
    """Its name in demo.yaml."""
    seconds: float
    """Wall time, submission included."""
    peak_memory_gib: float
    """Highest sum of the proportional set sizes of the cluster's processes."""
    outcome: str
    """The last line that the job printed."""


def run(steps: list[dict[str, Any]], values: dict[str, str], folder: Path, cluster: Cluster) -> list[StepResult]:
    """Run the steps in order on ``cluster``, and write their times to ``timings.json`` in ``folder``."""
    timings = folder / "timings.json"
    earlier = {row["step"]: row for row in json.loads(timings.read_text())} if timings.exists() else {}
    results: list[StepResult] = []
    with cluster:
        for number, step in enumerate(steps, start=1):
            name = step["name"]
            command = expand(step["run"], values)
            started = time.monotonic()
            outcome, peak = cluster.run(
                command, folder / "logs" / f"{number:02d}-{name}.log", f"{number}/{len(steps)} {name}"
            )
            results.append(StepResult(name, time.monotonic() - started, peak, outcome))
            print(f"{number}/{len(steps)} {name:14}{results[-1].seconds:6.0f} s  {outcome}", flush=True)
            # a step that was done before takes no time, so the longer of both times is kept
            longest = max([asdict(results[-1]), earlier.get(name, {})], key=lambda row: row.get("seconds", 0.0))
            earlier[name] = longest
            timings.write_bytes(render_json(list(earlier.values())))
            refused = step.get("if_refused")
            if refused and not _read_json(expand_text(refused["decision"], values))["promoted"]:
                values = values | {key: expand_text(text, values) for key, text in refused["values"].items()}
    return results


def load(source: str, values: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the steps of demo.yaml for ``source`` (``sample`` or ``photos``), and the values of their variables."""
    plan = yaml.safe_load((HERE / "demo.yaml").read_text())
    for name, text in {**plan["values"][source], **plan["values"]["all"]}.items():
        values = {name: expand_text(text, values)} | values
    return [step | {"run": step.get("run") or step[source]} for step in plan["steps"]], values


def expand_text(text: str, values: dict[str, str]) -> str:
    """Replace each ``$NAME`` by its value."""
    return string.Template(text).substitute(values)


def expand(command: str, values: dict[str, str]) -> list[str]:
    """Split a command line into words and replace each ``$NAME``; a value with spaces stays one word."""
    return [expand_text(word, values) for word in shlex.split(command)]


def photo_values(photos: Path) -> dict[str, str]:
    """Return the values for a folder of photos; its last subject is the customer's, and the base is not trained on it.

    Raises SystemExit for fewer than three subjects.
    """
    subjects = sorted(path.name for path in photos.iterdir() if path.is_dir()) if photos.is_dir() else []
    if len(subjects) < 3:
        raise SystemExit(
            f"error: {photos} has {len(subjects)} subjects; lay out at least three folders as <subject>/<nn>.jpg"
        )
    words = re.sub(r"[\d_]+", " ", subjects[-1]).strip() or "thing"
    return {"PHOTOS": str(photos), "SUBJECT": subjects[-1], "THING": f"{'an' if words[0] in 'aeiou' else 'a'} {words}"}


def stack_values(stack: Path, name: str) -> dict[str, str]:
    """Return the values for a running local stack, and export its variables into the environment of this process."""
    if not (stack / "env").is_file():
        raise SystemExit(f"error: {stack} has no stack; start one: python infra/local/stack.py up --state {stack}")
    os.environ.update(exports(stack))
    return {"DATA": f"s3://lookalike/{name.lstrip('.')}", "TRACKING": os.environ["MLFLOW_TRACKING_URI"]}


def table(results: list[StepResult]) -> str:
    """Render the results as a table."""
    rows = [f"{'step':14}{'time':>8}{'peak memory':>14}   last output"]
    for row in results:
        rows.append(f"{row.step:14}{row.seconds:6.0f} s{row.peak_memory_gib:10.1f} GiB   {row.outcome}")
    total, peak = sum(row.seconds for row in results), max(row.peak_memory_gib for row in results)
    return "\n".join([*rows, f"{'in all':14}{total:6.0f} s{peak:10.1f} GiB"])


def main() -> int:
    """Parse the flags, run the demo, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="demo", help="sizes: jobs/configs/*-PROFILE.yaml (demo, tiny)")
    parser.add_argument("--photos", type=Path, help="a folder of photos, in place of the sample world")
    parser.add_argument("--stack", type=Path, help="folder of a running local stack, in place of a private Ray head")
    parser.add_argument("--out", type=Path, help="folder for all results (.demo, or .demo-photos with --photos)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    folder = (options.out or Path(".demo-photos" if options.photos else ".demo")).absolute()
    values = {"DEMO": str(folder), "DATA": str(folder), "PROFILE": options.profile, "CUSTOMER": CUSTOMER}
    if options.stack:
        values |= stack_values(options.stack.absolute(), folder.name)
    if options.photos:
        values |= photo_values(options.photos.absolute())
    steps, values = load("photos" if options.photos else "sample", values)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = run(steps, values, folder, Cluster(options.stack or folder / "stack", REPO, owned=not options.stack))
    except JobFailedError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    print(f"\n{table(results)}\n\nreport: {values['DATA']}/report.html")
    return 0


def _read_json(uri: str) -> dict[str, Any]:
    return read_object(*locate_object(uri))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
