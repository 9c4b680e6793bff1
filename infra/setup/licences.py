"""List the licences of all installed packages, and fail if one is not allowed.

    python infra/setup/licences.py

The allowed licences, which have no duties for programs that only use or link a package, are in pyproject.toml
(`tool.lookalike.licences`). It also names the licence of packages whose metadata lacks one.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def terms(licence: str) -> list[str]:
    """Split ``A AND B`` or ``A; B`` into the licences that all apply; each may be a choice, ``A OR B``."""
    return [part.strip() for joined in licence.split(";") for part in joined.split(" AND ")]


def refused(packages: list[dict[str, str]], allowed: set[str], named: dict[str, str]) -> list[str]:
    """Return a line for each package whose licence is missing or not allowed."""
    lines = []
    for package in packages:
        licence = (
            named.get(package["Name"], package["License"]) if package["License"] == "UNKNOWN" else package["License"]
        )
        wrong = [term for term in terms(licence) if not any(choice in allowed for choice in term.split(" OR "))]
        if wrong:
            lines.append(f"{package['Name']} {package['Version']}: {', '.join(wrong)}")
    return lines


def main() -> int:
    """Print the licences; return 1 if one is not allowed, 2 if they cannot be listed."""
    settings: dict[str, Any] = tomllib.loads(_PYPROJECT.read_text())["tool"]["lookalike"]["licences"]
    done = subprocess.run([sys.executable, "-m", "piplicenses", "--format=json"], capture_output=True, text=True)
    if done.returncode:
        print(f"error: pip-licenses failed: {done.stderr.strip()[-500:]}; run make setup", file=sys.stderr)
        return 2
    packages: list[dict[str, str]] = json.loads(done.stdout)
    counts: dict[str, list[str]] = {}
    for package in packages:
        licence = package["License"]
        licence = settings["named"].get(package["Name"], licence) if licence == "UNKNOWN" else licence
        counts.setdefault(licence, []).append(package["Name"])
    for licence, names in sorted(counts.items()):
        print(f"{licence}: {', '.join(sorted(names, key=str.lower))}")
    lines = refused(packages, set(settings["allowed"]), settings["named"])
    if lines:
        print("error: licences that are not allowed: " + "; ".join(lines), file=sys.stderr)
        print(
            "fix: use another package, or allow the licence in pyproject.toml (tool.lookalike.licences)",
            file=sys.stderr,
        )
        return 1
    print(f"{len(packages)} packages, each with a licence that is allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
