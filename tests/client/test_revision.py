"""What git tells of a folder: whatever is wrong with it, something is told, soon, and nothing that lies there runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mms_sdk.client import revision as module
from mms_sdk.client.code import code_of
from mms_sdk.client.revision import revision_of
from mms_sdk.schema.environment import MAX_DIFF_CHARS, Revision

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(autouse=True)
def nobody_hurries(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy with other tests, git takes its time."""
    monkeypatch.setattr(module, "_WITHIN_S", 30.0)


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit of `code/train.py` and `other.txt`, with a list of what is ignored."""
    root = tmp_path / "repository"
    (root / "code").mkdir(parents=True)
    (root / "code" / "train.py").write_text("print(1)\nprint(2)\n")
    (root / "other.txt").write_text("other\n")
    (root / ".gitignore").write_text("*.secret\n")
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=first")
    return root


def told(folder: Path) -> Revision:
    revision, _ = revision_of(folder)
    assert revision is not None
    return revision


def test_of_a_clean_folder_the_commit_and_the_branch_are_told(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    for folder in (repository, repository / "code"):
        assert revision_of(folder) == (Revision(commit=commit, branch="main"), "")

    git(repository, "checkout", "--quiet", "--detach")

    assert told(repository) == Revision(commit=commit)


def test_the_diff_makes_of_the_commit_what_was_submitted(repository: Path, tmp_path: Path) -> None:
    (repository / "code" / "train.py").write_text("print(1)\nprint('été')\n")
    git(repository, "config", "diff.noprefix", "true")
    git(repository, "config", "color.ui", "always")

    revision, diff = revision_of(repository / "code")

    assert revision is not None
    assert (revision.dirty, revision.untracked, revision.cut) == (True, (), False)
    git(tmp_path, "clone", "--quiet", str(repository), "copy")
    subprocess.run(["git", "apply"], input=diff.encode(), cwd=tmp_path / "copy", check=True)
    assert (tmp_path / "copy/code/train.py").read_text() == "print(1)\nprint('été')\n"


def test_what_is_staged_belongs_to_the_diff_and_what_lies_beside_the_folder_does_not(repository: Path) -> None:
    (repository / "other.txt").write_text("changed\n")
    assert not told(repository / "code").dirty
    (repository / "code" / "new.py").write_text("print(3)\n")
    git(repository, "add", "code/new.py")

    revision, diff = revision_of(repository / "code")

    assert revision is not None
    assert revision.dirty
    assert "+print(3)" in diff
    assert "other.txt" not in diff


def test_what_git_does_not_know_is_named_and_what_it_ignores_is_not(repository: Path) -> None:
    (repository / "code" / "a b.py").write_text("private\n")
    (repository / "code" / "x.secret").write_text("private\n")

    revision, diff = revision_of(repository / "code")

    assert revision is not None
    assert (revision.dirty, revision.untracked, diff) == (True, ("code/a b.py",), "")


def test_of_many_names_twenty_are_told(repository: Path) -> None:
    for number in range(50):
        (repository / f"{number}-{'x' * 200}").touch()
    assert len(told(repository).untracked) == 20


def test_outside_of_a_repository_there_is_nothing_and_git_is_not_even_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.subprocess, "Popen", None)
    assert revision_of(tmp_path) == (None, "")


def test_without_git_that_is_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert revision_of(repository) == (Revision(unknown="git could not be started: No such file or directory"), "")


def test_before_the_first_commit_the_branch_is_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=new")
    (tmp_path / "a.py").touch()
    assert revision_of(tmp_path) == (Revision(branch="new", dirty=True, untracked=("a.py",)), "")


@pytest.mark.parametrize("harm", ["no HEAD", "no objects", "no gitdir", "index"])
def test_of_a_broken_repository_it_is_told_what_git_says(repository: Path, harm: str) -> None:
    inner = repository / ".git"
    if harm == "no HEAD":
        (inner / "HEAD").unlink()
    elif harm == "no objects":
        shutil.rmtree(inner / "objects")
    elif harm == "no gitdir":
        shutil.rmtree(inner)
        inner.write_text("gitdir: /nowhere\n")
    else:
        (inner / "index").write_bytes(b"DIRC is no index")

    revision = told(repository)

    assert revision.commit is None
    assert revision.unknown.startswith(("fatal: ", "error: "))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a folder to somebody else")
def test_of_somebody_elses_repository_git_tells_nothing(repository: Path) -> None:
    for each in (repository, repository / ".git"):
        os.chown(each, 12345, 12345)
    assert "dubious ownership" in told(repository).unknown


def test_of_a_huge_diff_the_whole_lines_of_its_beginning_are_kept(repository: Path) -> None:
    (repository / "code" / "train.py").write_text("".join(f"print({number})\n" for number in range(300_000)))

    revision, diff = revision_of(repository)

    assert revision is not None
    assert revision.cut
    assert MAX_DIFF_CHARS - 100 < len(diff) <= MAX_DIFF_CHARS
    assert diff.endswith(")\n")


def test_a_submodule_is_told_by_its_commit_and_not_looked_into(repository: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "--quiet")
    (inner / "a.py").write_text("1\n")
    git(inner, "add", ".")
    git(inner, "commit", "--quiet", "--message=a")
    git(repository, "submodule", "--quiet", "add", str(inner), "part")
    git(repository, "commit", "--quiet", "--message=part")
    (repository / "part" / "a.py").write_text("2\n")
    assert not told(repository).dirty
    assert told(repository / "part").dirty
    git(repository / "part", "commit", "--quiet", "--all", "--message=b")

    revision, diff = revision_of(repository)

    assert revision is not None
    assert revision.dirty
    assert f"+Subproject commit {git(repository / 'part', 'rev-parse', 'HEAD')}" in diff


def test_no_program_that_a_repository_names_runs(repository: Path, tmp_path: Path) -> None:
    """Neither for what changes a file is shown by, nor for how it is stored, nor for what has changed."""
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    program.chmod(0o700)
    for name in (
        *(
            "core.fsmonitor",
            "core.pager",
            "core.sshCommand",
            "diff.external",
            "diff.mine.command",
            "diff.mine.textconv",
        ),
        *("filter.mine.clean", "filter.mine.smudge", "filter.mine.process", "filter.a=b.clean"),
    ):
        git(repository, "config", name, str(program))
    git(repository, "config", "filter.mine.required", "true")
    for hook in ("post-index-change", "fsmonitor-watchman"):
        shutil.copy(program, repository / ".git" / "hooks" / hook)
    (repository / ".git" / "info" / "attributes").write_text("*.py filter=mine diff=mine\n*.txt filter=a=b\n")
    (repository / "code" / "train.py").write_text("print(3)\n")
    (repository / "other.txt").write_text("3\n")
    os.utime(repository / ".gitignore", (1, 1))

    revision, diff = revision_of(repository)

    assert not ran.exists()
    assert revision is not None
    assert (revision.unknown, revision.dirty) == ("", True)
    assert "+print(3)" in diff


def test_from_a_folder_that_is_gone_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert revision_of(Path()) == (None, "")
    assert code_of("print(1)\nprint(2)\n", None).folder == Path()


def test_the_index_is_not_written(repository: Path) -> None:
    os.utime(repository / "other.txt", (1, 1))
    before = (repository / ".git" / "index").read_bytes()
    (repository / ".git" / "index.lock").touch()  # as while somebody commits

    assert told(repository).unknown == ""
    assert (repository / ".git" / "index").read_bytes() == before


def test_what_this_process_was_told_of_another_repository_does_not_count(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As within a hook."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet", "--initial-branch=elsewhere")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "/bin/false")
    assert told(repository).branch == "main"


def test_a_git_that_does_not_end_is_not_waited_for(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "git"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "_WITHIN_S", 0.3)
    began = time.monotonic()

    revision = told(repository)

    assert revision.unknown == "git status did not end within 0.3 s"
    assert time.monotonic() - began < 5


def test_of_a_repository_that_is_too_large_to_look_through_the_commit_is_told_and_it_is_tried_once(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = shutil.which("git"), tmp_path / "asked"
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "git"
    slow.write_text(f'#!/bin/sh\necho "$*" >> {asked}\ncase "$*" in *status*) sleep 60;; esac\nexec {real} "$@"\n')
    slow.chmod(0o700)
    commit = git(repository, "rev-parse", "HEAD").strip()
    (repository / "other.txt").write_text("changed\n")
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "_WITHIN_S", 0.3)
    monkeypatch.setattr(module, "_COMMIT_WITHIN_S", 30.0)
    monkeypatch.setattr(module, "_large", {})

    for _ in range(2):
        revision = told(repository)
        assert (revision.commit, revision.branch) == (commit, "main")
        assert revision.unknown == "git status did not end within 0.3 s"
    assert asked.read_text().count("status") == 1

    monkeypatch.setattr(module, "_LARGE_FOR_S", -1.0)
    module._large.clear()
    told(repository)
    told(repository)
    assert asked.read_text().count("status") == 3
