"""Audit every package of requirements.lock for known vulnerabilities, and list those that could not be audited.

    python infra/setup/audit.py [--service pypi|osv]

The exit code is 0 only if every package was audited and none is known to be vulnerable. pip-audit alone succeeds if
packages were skipped, and with --strict it stops at the first one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 2


def locked(lock: Path) -> dict[str, str]:
    """Return the version of each package in ``lock``, by name."""
    lines = [line.strip() for line in lock.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("==", 1) for line in lines)


def verdict(wanted: dict[str, str], dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Return the exit code, and a line for each package that is vulnerable or was not audited."""
    audited = {_normal(item["name"]): item for item in dependencies}
    lines, vulnerable, skipped = [], 0, 0
    for name, version in wanted.items():
        item = audited.get(_normal(name))
        if item is None or "skip_reason" in item or item.get("version") != version or "vulns" not in item:
            reason = (item or {}).get("skip_reason") or "pip-audit did not report it"
            lines.append(f"NOT AUDITED {name} {version}: {reason}")
            skipped += 1
        elif item["vulns"]:
            ids = ", ".join(
                f"{vuln['id']} (fixed in {', '.join(vuln['fix_versions']) or '?'})" for vuln in item["vulns"]
            )
            lines.append(f"VULNERABLE {name} {version}: {ids}")
            vulnerable += 1
    code = VULNERABLE if vulnerable else NOT_AUDITED if skipped else CLEAN
    clean = len(wanted) - vulnerable - skipped
    lines.append(f"{clean} packages audited and clean, {vulnerable} vulnerable, {skipped} not audited of {len(wanted)}")
    return code, lines


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def main() -> int:
    """Audit, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="the vulnerability service to ask")
    parser.add_argument("--lock", type=Path, default=_LOCK, help="the file with exact versions")
    options = parser.parse_args()
    wanted = locked(options.lock)
    argv = [sys.executable, "-m", "pip_audit", "--requirement", str(options.lock), "--no-deps", "--disable-pip",
            "--format", "json", "--progress-spinner", "off", "--vulnerability-service", options.service]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = next((line for line in reversed(done.stderr.strip().splitlines()) if line.strip()), "nothing")
        for name, version in wanted.items():
            print(f"NOT AUDITED {name} {version}")
        print(
            f"error: none of the {len(wanted)} packages was audited: the vulnerability service {options.service} did "
            f"not answer ({said.strip()[:300]}); run this on a machine that reaches it, or try --service osv",
            file=sys.stderr,
        )
        return NOT_AUDITED
    code, lines = verdict(wanted, dependencies)
    print("\n".join(lines))
    if code == NOT_AUDITED:
        print("error: some packages were not audited and may be vulnerable; see the lines NOT AUDITED", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
