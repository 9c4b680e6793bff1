"""Feed mutated files to their readers: ``python -m tests.bench.fuzz_worker SEED SECONDS FOLDER``.

Before each input it notes which one it is, so that an input that kills the process, or that it never ends with, is
known to its parent. Findings are lines of JSON on standard output; each has its input beside it, below ``findings/``.
"""

import hashlib
import json
import logging
import random
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

from lookalike.errors import LookalikeError
from tests.bench.fuzz_mutations import mutate
from tests.bench.fuzz_targets import all_targets

# Their readers want files beside them that a fuzzer does not make: an error that names these is right.
_REFUSED = ("image", "control finetune's result", "control generations.json")
SLOW_S = 20.0  # of one input of some kilobytes
GROWN_BYTES = 1 << 30  # by one input


def main(seed: str, seconds: float, folder: Path) -> None:
    """Fuzz until the time is over; each round uses every kind of file once."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    findings, note = folder / "findings", folder / "current.json"
    findings.mkdir(parents=True, exist_ok=True)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    targets = all_targets(folder)
    only = {name: item for name, item in targets.items() if not sys.argv[4:] or name.startswith(tuple(sys.argv[4:]))}
    counts: dict[str, list[int]] = {name: [0, 0] for name in only}
    known: set[str] = set()
    for name, (seeds, target) in only.items():
        for data in seeds:  # what is not damaged is read, else nothing is tested
            try:
                target(data, scratch)
            except LookalikeError as error:
                if not name.startswith(_REFUSED):
                    raise AssertionError(f"the seed of {name} is refused") from error
    began, number = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        number += 1
        for name, (seeds, target) in only.items():
            case = f"{seed}/{name}/{number}"
            data = mutate(random.Random(case).choice(seeds), case, seeds)
            (folder / "current.bin").write_bytes(data)
            note.write_text(json.dumps({"case": case, "target": name, "since": time.time()}))
            started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            problem = ""
            counts[name][0] += 1
            try:
                target(data, scratch)
            except LookalikeError:
                counts[name][1] += 1
            except Exception as error:
                frames = [
                    f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
                ]
                problem = f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(reversed(frames[-4:]))}"
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            if not problem and time.monotonic() - started > SLOW_S:
                problem = f"slow: {time.monotonic() - started:.0f} s for {len(data)} bytes"
            if not problem and grown > GROWN_BYTES:
                problem = f"memory: {grown >> 20} MiB for {len(data)} bytes"
            kind = f"{name}|{problem.partition(':')[0]}|{problem.rpartition(' at ')[2].partition(' < ')[0]}"
            if problem and kind not in known:
                known.add(kind)
                file = findings / f"{hashlib.sha256(kind.encode()).hexdigest()[:12]}.bin"
                file.write_bytes(data)
                print(json.dumps({"case": case, "target": name, "problem": problem, "input": str(file)}), flush=True)
    note.unlink()
    print(json.dumps({"counts": counts, "rounds": number}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
