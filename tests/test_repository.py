"""What no file of the repository may hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.~$}*-])/(?:root|work|Users|home/[a-z][\w-]*)/"),
    "the address of a package index": re.compile(
        r"--(?:extra-)?index-url|--find-link[s]|\b(?:PIP|UV)_\w*(?:INDEX|LINKS)|https?://[^\s\"']+/simple\b"
    ),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "a provider's token": re.compile(
        r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{36}|github_pat_\w{22,}|hf_\w{30,}|xox[abpr]-[\w-]{10,}|sk-[\w-]{20,})\b"
    ),
    "a password or token written out": re.compile(
        r"(?i)(?:password|passwd|secret|token|api_?key)[\"']?\s*[:=]\s*[\"'][A-Za-z0-9+/_=-]{20,}[\"']"
    ),
}


def tracked_files() -> list[Path]:
    """The files that are in the repository or would be with the next commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git, to know which files belong to the repository")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, to know which files belong to the repository")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def findings(text: str) -> list[str]:
    return [f"{what}: {found[0]}" for what, pattern in FORBIDDEN.items() if (found := pattern.search(text))]


def test_no_file_names_a_machine_an_index_or_a_secret() -> None:
    found = [
        f"{path.relative_to(ROOT)} holds {finding}"
        for path in tracked_files()
        for finding in findings(path.read_text(errors="replace"))
    ]

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "open('/" + "home/ada/photos')",
        "cd /" + "root/clone",
        "pip install -" + "-index-url x",
        "token = '" + "a1B2" * 6 + "'",
        "AKIA" + "Q" * 16,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
    ],
)
def test_what_is_looked_for_is_found(text: str) -> None:
    assert findings(text)


@pytest.mark.parametrize(
    "text", ["src/" + "work/x", "~/" + "home/x", "POST /v1/models/flowers:predict", "token = make_token()"]
)
def test_what_is_harmless_is_not_reported(text: str) -> None:
    assert not findings(text)
