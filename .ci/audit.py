"""Looks the tests' packages up in the database of known vulnerabilities: python .ci/audit.py

pip-audit runs in an environment of its own on constraints.txt. Exit code 0: none is known, or the database cannot be
reached from here, which is said; 1: a package has one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = REPOSITORY / ".venv-audit"


def verdict(output: str, errors: str) -> tuple[int, str]:
    """The exit code and a line for people.

    Args:
        output: pip-audit's, as JSON; what it could not look up is no package without vulnerabilities.
        errors: what it said where there is no JSON.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (errors.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return 0, f"audit: NOT DONE: the database of vulnerabilities cannot be reached from here ({reason})"
    checked = [package for package in packages if "skip_reason" not in package]
    if not checked:
        return 0, f"audit: NOT DONE: the database that is reached from here knows none of {len(packages)} packages"
    vulnerable = [f"{package['name']} {package['version']}" for package in checked if package["vulns"]]
    line = f"audit: {len(checked)} of {len(packages)} packages looked up, {len(vulnerable)} with known vulnerabilities"
    return (1, f"{line}: {', '.join(vulnerable)}") if vulnerable else (0, line)


def install() -> bool:
    """Install pip-audit into its environment; whether that worked."""
    if (ENVIRONMENT / "bin" / "pip-audit").exists():
        return True
    subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    command = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "pip-audit"]
    return subprocess.run(command, check=False).returncode == 0


def main() -> int:
    if not install():
        print("audit: NOT DONE: pip-audit cannot be installed here")
        return 0
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [ENVIRONMENT / "bin" / "pip-audit", "-r", REPOSITORY / "constraints.txt", *options]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    except subprocess.TimeoutExpired:
        print("audit: NOT DONE: the database of vulnerabilities did not answer in three minutes")
        return 0
    code, line = verdict(ended.stdout, ended.stderr)
    print(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
