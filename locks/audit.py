"""Asks pip-audit about everything the set-up installs, on every platform: `make audit`.

Exit code 0: nothing known against any package; 1: something is; 2: not every package could be asked about. pip-audit
itself calls a package sound that its service does not know, and so all of them behind a mirror without that service.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PIN = re.compile(r"^[A-Za-z0-9][\w.-]*==[^\s;\\]+", re.MULTILINE)
REMEDY = "run make audit where PyPI itself can be reached"


def pins(files: Sequence[Path]) -> list[str]:
    """Every ``name==version`` of the files, each once."""
    return sorted({pin for file in files for pin in PIN.findall(file.read_text())})


def verdict(report: Any, asked: int) -> tuple[int, str]:
    """Exit code and message for what pip-audit reports as JSON (None where it could not run) on so many packages."""
    if report is None:
        return 2, f"audit: NOT DONE, pip-audit could not ask its service (see above); {REMEDY}"
    packages = report["dependencies"]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for each in packages
        for flaw in each.get("vulns", ())
    ]
    missing = asked - len(packages) + len(unknown)
    lines = [f"audit: {len(found)} known vulnerabilities in {asked - missing} packages", *found]
    if missing:
        named = f" ({', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''})" if unknown else ""
        lines.append(
            f"audit: NOT DONE for {missing} of {asked} packages, which its service does not know{named}; {REMEDY}"
        )
    return (1 if found else 2 if missing else 0), "\n".join(lines)


def main(files: Sequence[str]) -> int:
    """Asks about the pins of some files and prints the verdict."""
    asked = pins([Path(file) for file in files])
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("\n".join(asked) + "\n")
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json"]
        command += ["--progress-spinner", "off", "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(done.stderr, file=sys.stderr)
        report = None
    code, message = verdict(report, len(asked))
    print(message)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
