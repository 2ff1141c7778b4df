from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from s3_buckets import make_bucket
from small_datasets import add, content_of
from small_versions import CARD

from mms_sdk.errors import BackupNotFound, Conflict, Damaged, InvalidRequest, Unavailable
from mms_sdk.schema.job import Attempt, Ended, Job, JobRequest, JobSpec, Progress, Reason, Resources, Retry
from mms_sdk.storage import manifest, metric_index, records, tables
from mms_sdk.storage.backup import catalog_rows, contents, copies
from mms_sdk.storage.backup.copies import Copies
from mms_sdk.storage.backup.replicating import replicate
from mms_sdk.storage.backup.restoring import promote, restore
from mms_sdk.storage.bundles import pack
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.edits import compact, delete_rows
from mms_sdk.storage.holes import stretches
from mms_sdk.storage.metric_log import MetricLog
from mms_sdk.storage.retention import collect_garbage, expire, tag, tags, untag
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.opening import store_at
from mms_sdk.storage.workspace import Workspace
from postgres_server import PostgresServer
from torture import times


def register(workspace: Workspace, weights: bytes) -> None:
    staged, folder = workspace.stage()
    (folder / "weights").write_bytes(weights)
    (folder / "empty").write_bytes(b"")
    manifest.seal(folder)
    artifact, _, digest = workspace.keep_artifact(staged)
    workspace.catalog.models.add("flowers", artifact=artifact, digest=digest, size=len(weights), card=CARD)


def checkpoint(workspace: Workspace, job: str, step: int) -> Path:
    draft = workspace.job_folder(job) / "checkpoints" / f".{step:010d}.partial"
    (draft / "state").mkdir(parents=True)
    (draft / "state" / "w").write_bytes(b"w" * step)
    manifest.seal(draft)
    return draft.rename(draft.with_name(f"{step:010d}"))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """One with a dataset that was edited, models, jobs, a log and checkpoints."""
    made = Workspace(tmp_path / "workspace")
    dataset = made.open_or_create_dataset("flowers")
    add(dataset, content_of(9, seed=1))
    add(dataset, content_of(4, seed=2))
    delete_rows(dataset, [3], of=dataset.snapshot())
    tag(dataset, "paper", 1)
    register(made, b"weights of one")
    register(made, b"weights of two")
    made.catalog.models.set_alias("flowers", "champion", 2)
    job = made.catalog.jobs.start("train", "flowers", {"epochs": 2}).id
    made.catalog.jobs.progress(job, Progress(done=1, total=2, what="epochs"))
    log = MetricLog(made.job_folder(job) / "metrics.jsonl")
    log.write({"step": 1, "loss": 0.5})
    log.close()
    checkpoint(made, job, 7)
    yield made
    made.close()


def tree(root: Path) -> dict[str, bytes]:
    folders = [root / name for name in ("datasets", "artifacts", "jobs") if (root / name).exists()]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def rows(where: Workspace) -> list[dict[str, Any]]:
    return list(catalog_rows.dump(where.catalog))


def assert_same(first: Workspace, second: Workspace) -> None:
    assert tree(second.root) == tree(first.root)
    assert rows(second) == rows(first)
    assert second.id == first.id


def test_a_restored_workspace_is_the_same_byte_for_byte(workspace: Workspace, store: Store, tmp_path: Path) -> None:
    backup = Copies(store).take(workspace)
    assert backup.files == len(tree(workspace.root)) + 2  # the catalog and workspace.json besides
    assert Copies(store).verify().backups == 1

    assert restore(Copies(store), tmp_path / "again") == backup
    again = Workspace(tmp_path / "again")
    assert_same(workspace, again)
    again.dataset("flowers").verify()
    again.close()


def test_only_what_is_new_is_sent(workspace: Workspace, store: Store) -> None:
    first = Copies(store).take(workspace)
    second = Copies(store).take(workspace)
    assert second.sent_files == 0
    assert (second.files, second.bytes) == (first.files, first.bytes)

    dataset = workspace.dataset("flowers")
    before = set(tree(workspace.root))
    add(dataset, content_of(5, seed=3))
    third = Copies(store).take(workspace)
    fresh = set(tree(workspace.root)) - before
    # Zarr metadata that an earlier part had too is there already; the list of files is new.
    assert third.files == second.files + len(fresh)
    assert 0 < third.sent_files <= len(fresh) + 1
    assert [each.id for each in Copies(store).records()] == [first.id, second.id, third.id]


def test_a_copy_that_was_cut_short_is_gone_on_with(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, sent = LocalStore.upload, []

    def fails_later(self: LocalStore, key: str, file: Path) -> None:
        if len(sent) == 10:
            raise Unavailable("the network is gone")
        sent.append(key)
        upload(self, key, file)

    monkeypatch.setattr(LocalStore, "upload", fails_later)
    place = Copies(LocalStore(tmp_path / "place"))
    with pytest.raises(Unavailable):
        place.take(workspace)
    assert place.records() == []
    with pytest.raises(BackupNotFound, match=r"no backup at .*place; there are none yet"):
        place.get()
    monkeypatch.undo()
    backup = place.take(workspace)
    objects = {file.sha256 for file in place.files(backup)} | {backup.index}
    there = {key[-64:] for key in sent}  # of two files with the same bytes that were sent side by side, both count
    assert backup.sent_files <= len(objects - there) + 2
    assert place.verify().backups == 1


def test_every_copy_of_a_workspace_at_work_is_whole(workspace: Workspace, tmp_path: Path) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []
    job = next(each["row"]["id"] for each in rows(workspace) if each["table"] == "jobs")

    def work(do: Any) -> None:
        count = 0
        try:
            while not stop.is_set():
                count += 1
                do(count)
                time.sleep(0.002)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    def commit(count: int) -> None:
        dataset = workspace.dataset("flowers")
        add(dataset, content_of(3, seed=count), rebase=True)
        if count % 5 == 0:
            compact(dataset, of=dataset.snapshot())
        if count % 7 == 0:
            expire(dataset, keep=3)
            collect_garbage(dataset, grace_s=3600)

    log = MetricLog(workspace.job_folder(job) / "metrics.jsonl")

    def save(count: int) -> None:
        made = checkpoint(workspace, job, 100 + count)
        doomed = made.with_name(f".{made.name}.retired")
        if count > 2:
            older = made.with_name(f"{100 + count - 2:010d}")
            older.rename(doomed)
            shutil.rmtree(doomed)

    def write(count: int) -> None:
        log.write({"step": count, "loss": 1 / count})

    threads = [threading.Thread(target=work, args=(each,)) for each in (commit, save, write)]
    for thread in threads:
        thread.start()
    place = Copies(LocalStore(tmp_path / "place"))
    try:
        backups = [place.take(workspace) for _ in range(8)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        log.close()
    assert failed == []
    place.verify()
    for number, backup in enumerate(backups):
        restore(place, tmp_path / f"again-{number}", backup=backup.id)
        again = Workspace(tmp_path / f"again-{number}")
        again.dataset("flowers").verify()
        contents.verify(again)
        for line in (again.root / "jobs" / job / "metrics.jsonl").read_bytes().splitlines(keepends=True):
            assert line.endswith(b"\n")
            orjson.loads(line)
        again.close()


@pytest.mark.torture
def test_copies_that_were_killed_at_any_instant_leave_whole_ones(workspace: Workspace, tmp_path: Path) -> None:
    script = Path(__file__).with_name("backs_up_until_killed.py")
    place = Copies(LocalStore(tmp_path / "place"))
    rng, told = random.Random(0), []
    kills = times(8, full=20)
    for round_ in range(kills):
        add(workspace.dataset("flowers"), content_of(50, seed=round_))
        command = [sys.executable, str(script), str(workspace.root), str(tmp_path / "place")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        told += process.communicate()[0].split()
        assert set(told) <= {each.id for each in place.records()}
        place.verify()
    place.take(workspace)
    restore(place, tmp_path / "again")
    again = Workspace(tmp_path / "again")
    assert_same(workspace, again)
    again.close()
    print(f"{kills} kills: {len(told)} copies told, {len(place.records()) - 1} there, each whole; restored the same")


def test_any_flipped_bit_is_found_and_named(workspace: Workspace, store: Store, tmp_path: Path) -> None:
    place = Copies(store)
    backup = place.take(workspace)
    names = [(file.sha256, file.path) for file in place.files(backup)]
    stored = [each for each in store.walk("objects") if each.bytes and not each.key.endswith("/")]
    rng = random.Random(2)
    for each in rng.sample(stored, 6):
        key = f"objects/{each.key}"
        right = store.read(key)
        wrong = bytearray(right)
        wrong[rng.randrange(len(right))] ^= 1 << rng.randrange(8)
        for damaged in (bytes(wrong), None):
            if damaged is None:
                store.delete(key)
            else:
                store.replace(key, damaged)
            digest = each.key.rsplit("/")[-1]
            with pytest.raises(Damaged) as found:
                place.verify()
            expected = [path for sha256, path in names if sha256 == digest] or ["the list of files"]
            assert any(path in found.value.message for path in expected)
            with pytest.raises(Damaged):
                restore(place, tmp_path / "again")
            with pytest.raises(InvalidRequest):
                Workspace(tmp_path / "again")
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
        store.replace(key, right)
    for key in ("backups/" + store.names("backups")[0], "backup.json"):
        right = store.read(key)
        store.replace(key, right.replace(b"01", b"02", 1))
        call = place.verify if key.startswith("backups/") else lambda: place.take(workspace)
        with pytest.raises((Damaged, Conflict)):
            call()
        store.replace(key, right)
    place.verify()


def test_what_is_damaged_in_the_workspace_is_named_and_all_else_copied(workspace: Workspace, tmp_path: Path) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    part = workspace.root / "datasets" / "flowers" / "parts" / workspace.dataset("flowers").record().parts[0].id
    chunk = next(path for path in sorted(part.rglob("c/*")) if path.is_file())
    right = chunk.read_bytes()
    chunk.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    with pytest.raises(Damaged, match=rf"1 files are gone or are not, e\.g\. {chunk}"):
        place.take(workspace)
    with pytest.raises(Damaged, match=rf"{chunk}; restore them"):
        contents.verify(workspace)
    assert place.records() == []
    chunk.write_bytes(right)
    assert place.take(workspace).sent_files <= 3  # that chunk, the index, and what it shares with nobody
    read, size = contents.verify(workspace)
    assert read > 10
    assert size > 1000


def test_a_place_is_one_workspaces(workspace: Workspace, tmp_path: Path) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    place.take(workspace)
    other = Workspace(tmp_path / "other")
    with pytest.raises(Conflict, match=r"holds the backups of one workspace; .* name another place"):
        place.take(other)
    other.close()


def test_a_promoted_copy_is_the_one_that_is_gone_on_with(workspace: Workspace, tmp_path: Path) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    place.take(workspace)
    promote(place, tmp_path / "next")
    with pytest.raises(Conflict, match=r"these copies became the workspace .*next on"):
        place.take(workspace)
    with pytest.raises(Conflict, match=r"copies become one workspace; .*next on"):
        promote(place, tmp_path / "another")
    promoted = Workspace(tmp_path / "next")
    assert_same(workspace, promoted)
    add(promoted.dataset("flowers"), content_of(2))
    elsewhere = Copies(LocalStore(tmp_path / "elsewhere"))
    assert elsewhere.take(promoted).workspace == workspace.id
    promoted.close()


def test_a_promotion_that_was_cut_short_is_gone_on_with(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    place.take(workspace)
    download, done = LocalStore.download, []

    def fails_later(self: LocalStore, key: str, file: Path) -> None:
        if len(done) == 12:
            raise Unavailable("the network is gone")
        done.append(key)
        download(self, key, file)

    monkeypatch.setattr(LocalStore, "download", fails_later)
    with pytest.raises(Unavailable):
        promote(place, tmp_path / "next")
    with pytest.raises(InvalidRequest, match=r"a new workspace is made in an empty or absent folder"):
        Workspace(tmp_path / "next")
    again: list[str] = []
    monkeypatch.setattr(LocalStore, "download", lambda self, key, file: (again.append(key), download(self, key, file)))
    promote(place, tmp_path / "next")
    assert len(again) < len(place.files(place.get()))
    promoted = Workspace(tmp_path / "next")
    assert_same(workspace, promoted)
    promoted.close()


def test_a_folder_that_holds_something_is_not_restored_to(workspace: Workspace, tmp_path: Path) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    first, second = place.take(workspace), place.take(workspace)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"to an empty or absent folder; .*full holds something"):
        restore(place, tmp_path / "full")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "restoring.json").write_bytes(orjson.dumps({"backup": first.id}))
    with pytest.raises(InvalidRequest, match=f"part of backup {first.id}, asked for was {second.id}"):
        restore(place, tmp_path / "half")
    with pytest.raises(BackupNotFound, match="no backup nobody at"):
        restore(place, tmp_path / "new", backup="nobody")


def test_old_copies_and_what_they_alone_held_are_let_go(workspace: Workspace, tmp_path: Path) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    place.take(workspace)
    dataset = workspace.dataset("flowers")
    compact(dataset, of=dataset.snapshot())
    shutil.rmtree(workspace.root / "datasets" / "flowers" / "tags")
    expire(dataset)
    newest = place.take(workspace)
    before = len(place.store.walk("objects"))
    with pytest.raises(InvalidRequest, match="keep=0"):
        place.prune(0)
    assert place.prune(1) == 1
    assert len(place.store.walk("objects")) == before  # a copy that is being made may hold them
    place.prune(1, grace_s=0)
    assert len(place.store.walk("objects")) < before
    assert place.records() == [newest]
    place.verify()
    restore(place, tmp_path / "again")


@pytest.mark.parametrize("way", ["to", "from", "both"])
def test_a_catalog_goes_from_one_database_to_another(
    workspace: Workspace, tmp_path: Path, postgres: PostgresServer, way: str
) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    place.take(workspace)
    expected = rows(workspace)
    url = postgres.make_database()
    restore(place, tmp_path / "server", catalog=url)
    on_server = Workspace(tmp_path / "server", catalog=url)
    assert rows(on_server) == expected
    with pytest.raises(Conflict, match="name an empty database"):
        restore(place, tmp_path / "twice", catalog=url)
    if way != "to":
        other = Copies(LocalStore(tmp_path / "other"))
        other.take(on_server)
        back = postgres.make_database() if way == "both" else None
        restore(other, tmp_path / "back", catalog=back)
        again = Workspace(tmp_path / "back", catalog=back)
        assert rows(again) == expected
        again.close()
    on_server.close()


def test_a_catalog_of_an_older_revision_is_brought_to_the_newest(tmp_path: Path) -> None:
    row = {"hash": "0" * 64, "name": "me", "role": "admin", "created_at": "2025-01-01T00:00:00.000Z"}
    lines = [json.dumps({"table": "tokens", "row": row}).encode()]
    catalog_rows.fill(tmp_path / "catalog.sqlite", "w", lines, revision="0001")
    catalog = Catalog(tmp_path / "catalog.sqlite")
    (now,) = [each["row"] for each in catalog_rows.dump(catalog)]
    assert {name: now[name] for name in row} == row
    catalog.close()
    with pytest.raises(Damaged, match="comes from a newer MMS"):
        catalog_rows.fill(tmp_path / "newer.sqlite", "w", lines, revision="9999")


def test_datasets_are_restored_to_another_store(workspace: Workspace, tmp_path: Path, moto: str) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    place.take(workspace)
    url = make_bucket(moto)
    restore(place, tmp_path / "again", datasets=url)
    again = Workspace(tmp_path / "again", datasets=url)
    assert again.dataset("flowers").record() == workspace.dataset("flowers").record()
    again.dataset("flowers").verify()
    back = Copies(LocalStore(tmp_path / "back"))
    assert back.take(again).files == place.get().files
    again.close()


def test_a_replica_is_kept_until_told_to_stop_and_through_what_fails(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, said, stop = Copies(LocalStore(tmp_path / "place")), [], threading.Event()
    take, tried = Copies.take, []

    def sometimes(self: Copies, of: Workspace) -> object:
        tried.append(1)
        if len(tried) == 2:
            raise Unavailable("the store says \x1b[2J; try later")
        return take(self, of)

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 5:
            stop.set()

    monkeypatch.setattr(Copies, "take", sometimes)
    replicate(workspace, place, every_s=0.01, keep=2, say=say, stop=stop)
    assert said[1] == "no backup this time: the store says \\x1b[2J; try later"
    assert all(line.startswith("backup 0") for line in (said[0], *said[2:]))
    assert len(place.records()) == 2


def test_a_name_that_begins_with_another_does_not_go_with_it(workspace: Workspace, tmp_path: Path) -> None:
    sending = copies._Sending(LocalStore(tmp_path / "place"), tmp_path)
    sending._gone.add("jobs/A/checkpoints/1")
    assert sending.is_gone("jobs/A/checkpoints/1/state")
    assert not sending.is_gone("jobs/A/checkpoints/10/state")


def test_copies_at_a_url_and_a_folder_are_the_same(workspace: Workspace, tmp_path: Path) -> None:
    Copies(store_at(tmp_path / "place")).take(workspace)
    assert len(Copies(store_at(f"file://{tmp_path / 'place'}")).records()) == 1


def test_a_tag_that_moved_in_a_far_store_is_backed_up_where_it_is(tmp_path: Path, moto: str) -> None:
    far = Workspace(tmp_path / "far", datasets=make_bucket(moto))
    dataset = far.open_or_create_dataset("flowers")
    for seed in (1, 2):
        add(dataset, content_of(3, seed=seed))
    place = Copies(LocalStore(tmp_path / "place"))
    for number in (1, 2):
        tag(dataset, "paper", number)
        place.take(far)
        restore(place, tmp_path / f"again-{number}")
        again = Workspace(tmp_path / f"again-{number}")
        assert tags(again.dataset("flowers")) == {"paper": number}
        again.close()
        untag(dataset, "paper")
    far.close()


def test_no_older_copy_is_let_go_while_one_that_stays_is_damaged(workspace: Workspace, tmp_path: Path) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    first = place.take(workspace)
    add(workspace.dataset("flowers"), content_of(2))
    second = place.take(workspace)
    place.store.delete(f"objects/{second.index[:2]}/{second.index}")
    with pytest.raises(Damaged, match="the list of files"):
        place.prune(1, grace_s=0)
    restore(place, tmp_path / "again", backup=first.id)


def test_a_copy_whose_contents_were_let_go_while_it_was_made_is_none(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    gone = place.files(place.take(workspace))[0].sha256
    refuse = copies._Sending.refuse_damage

    def meanwhile(self: Any) -> None:
        refuse(self)
        place.store.delete(f"objects/{gone[:2]}/{gone}")

    monkeypatch.setattr(copies._Sending, "refuse_damage", meanwhile)
    with pytest.raises(Unavailable, match="let go while this one was made; back up again"):
        place.take(workspace)
    assert len(place.records()) == 1
    monkeypatch.undo()
    place.take(workspace)
    place.verify()


@pytest.mark.parametrize("path", ["../../outside", "/outside", "datasets/flowers/../../../outside", "jobs//x", ""])
def test_a_copy_that_would_leave_its_folder_is_not_restored(workspace: Workspace, tmp_path: Path, path: str) -> None:
    place = Copies(LocalStore(tmp_path / "place"))
    record = place.take(workspace)
    held = place.files(record)
    held.append(held[-1]._replace(path=path))
    lines = b"".join(orjson.dumps(each._asdict()) + b"\n" for each in held)
    digest = hashlib.sha256(lines).hexdigest()
    place.store.replace(copies._object(digest), lines)
    wrong = record.model_copy(update={"index": digest})
    place.store.replace(f"backups/{record.id}.json", records.signed(wrong, "record"))
    for call in (lambda: restore(place, tmp_path / "deep" / "again"), place.verify):
        with pytest.raises(Damaged, match="what a backup holds lies in its workspace"):
            call()
    assert not list(tmp_path.rglob("outside*"))


# Jobs of an engine -------------------------------------------------------------------------------------------------


def submitted(workspace: Workspace, name: str, *, bundle: str | None = None, times: int = 3) -> Job:
    digest = bundle or workspace.bundles.keep(pack({"train.py": name.encode()}))
    spec = JobSpec(bundle=digest, entrypoint="train.py", retry=Retry(times, wait_s=0), resources=Resources(cpus=1))
    return workspace.catalog.attempts.submit(JobRequest(kind="script", name=name, spec=spec))


def begun(workspace: Workspace) -> Attempt:
    """Takes the next job as an engine does, with what lies in the folder of one that runs."""
    found = workspace.catalog.attempts.take(engine="local", owner="1:1@here", fits=lambda *_: {"cpus": 1})
    assert found is not None
    job, attempt = found
    workspace.catalog.attempts.runs(attempt, "2:2@here")
    folder = workspace.job_folder(job.id) / "attempts" / str(attempt.number)
    workspace.bundles.unpack(job.spec["bundle"], folder / "code")
    for name, told in {
        "attempt.json": "{}",
        "supervisor.json": '{"owner": "2:2@here"}',
        "log.txt": "half a li",
    }.items():
        (folder / name).write_text(told)
    return attempt


def ended_of(reason: Reason) -> Ended:
    return Ended(reason=reason, detail="why", at="2026-01-01T00:00:00.000Z", lines=("last",))


def test_a_copy_has_attempts_bundles_and_logs_and_runs_nothing_by_itself(workspace: Workspace, tmp_path: Path) -> None:
    done, tried, runs, over, waits = (submitted(workspace, name) for name in ("done", "tried", "runs", "over", "waits"))
    attempts = workspace.catalog.attempts
    attempts.end(begun(workspace), ended_of("succeeded"))
    attempts.end(begun(workspace), ended_of("lost"))  # and waits to be tried again
    with workspace.catalog.writing() as connection:
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == tried.id).values(priority=-1))
    begun(workspace)
    ends = begun(workspace)
    folder = workspace.job_folder(over.id) / "attempts" / "1"
    (folder / "ended.json").write_text(ended_of("user").model_dump_json())  # which nobody has recorded yet
    place = Copies(LocalStore(tmp_path / "place"))

    place.take(workspace)
    restore(place, tmp_path / "again")
    promote(place, tmp_path / "next")

    again, following = Workspace(tmp_path / "again"), Workspace(tmp_path / "next")
    assert rows(following) == rows(workspace)
    states = {job.name: job.state for job in again.catalog.jobs.list() if job.engine}
    assert states == {"done": "succeeded", "tried": "lost", "runs": "lost", "over": "failed", "waits": "lost"}
    told = {job.name: (job.error or {}).get("detail", "") for job in again.catalog.jobs.list()}
    assert "it waited when the backup was made" in told["waits"]
    assert "it waited when the backup was made" in told["tried"]
    assert "it ran when the backup was made" in told["runs"]
    assert told["over"] == "why"
    assert again.catalog.attempts.at_work("local") == []
    assert again.catalog.attempts.take(engine="local", owner="", fits=lambda *_: {}) is None
    assert again.catalog.attempts.of(ends.job)[0].ended == ended_of("user")
    for job in (done, tried, waits):
        assert again.catalog.attempts.of(job.id) == attempts.of(job.id)
    (lost,) = again.catalog.attempts.of(runs.id)
    assert lost.ended is not None
    assert lost.ended.reason == "lost"
    for copied in (again, following):
        names = {path.name for path in (copied.root / "jobs" / runs.id / "attempts" / "1").iterdir()}
        assert names == {"attempt.json", "log.txt", "code"}  # and not who looks after it on this machine
        assert copied.bundles.names(waits.spec["bundle"]) == ["train.py"]
        contents.verify(copied)
        copied.close()


def test_the_hole_of_a_long_log_is_neither_sent_nor_filled_and_what_is_restored_reads_the_same(
    workspace: Workspace, tmp_path: Path
) -> None:
    submitted(workspace, "prints")
    attempt = begun(workspace)
    written, logs = random.Random(0).randbytes(2**20 + 99), {}
    folder = workspace.job_folder(attempt.job) / "attempts" / "1"
    for name in ("log.txt", "log.3.txt"):
        with (folder / name).open("wb") as file:
            file.write(written)
            file.seek(2**30 + 4096)  # a GiB of nothing
            file.write(written[::-1])
        logs[name] = (folder / name).stat().st_size
    place = Copies(LocalStore(tmp_path / "place"))

    first = place.take(workspace)
    again = place.take(workspace)
    assert (again.sent_files, again.files) == (0, first.files)
    assert first.sent_bytes < 5 * len(written)
    assert 2 * len(written) <= place.verify().bytes < 3 * len(written)  # both logs are the same
    restore(place, tmp_path / "again")

    for name in ("log.txt", "log.3.txt"):
        copied = tmp_path / "again" / "jobs" / attempt.job / "attempts" / "1" / name
        assert copied.stat().st_size == logs[name]
        assert copied.stat().st_blocks * 512 < 3 * len(written)
        assert copied.stat().st_mode & 0o777 == 0o600
        assert stretches(copied) == stretches(folder / name)
        with copied.open("rb") as file:
            assert file.read(len(written) + 10) == written + bytes(10)
            file.seek(2**30)
            assert file.read() == bytes(4096) + written[::-1]


def test_a_file_full_of_holes_or_that_ends_in_one_is_copied_as_it_reads(workspace: Workspace, tmp_path: Path) -> None:
    submitted(workspace, "prints")
    attempt = begun(workspace)
    folder = workspace.job_folder(attempt.job) / "attempts" / "1"
    with (folder / "log.txt").open("wb") as file:
        for place in range(40):
            file.seek(place * 16384)
            file.write(b"here")
    with (folder / "log.1.txt").open("wb") as file:
        file.write(b"a")
        file.seek(2**16)
        file.write(b"b")
        file.truncate(2**20)
    (folder / "log.2.txt").touch()
    with (folder / "log.3.txt").open("wb") as file:
        file.truncate(2**16)
    copies_of_it = Copies(LocalStore(tmp_path / "place"))

    copies_of_it.take(workspace)
    restore(copies_of_it, tmp_path / "again")

    for name in ("log.txt", "log.1.txt", "log.2.txt", "log.3.txt"):
        copied = tmp_path / "again" / "jobs" / attempt.job / "attempts" / "1" / name
        assert copied.read_bytes() == (folder / name).read_bytes()


def test_what_a_script_made_where_it_runs_is_copied_as_far_as_it_is_files(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submitted(workspace, "odd")
    begun(workspace)
    code = workspace.job_folder(job.id) / "attempts" / "1" / "code"
    (code / "out").mkdir()
    (code / "out" / "numbers.txt").write_text("1 2 3")
    (code / "out" / os.fsdecode(b"caf\xe9 \xff")).write_text("no UTF-8")
    (code / "link").symlink_to("/etc/hostname")
    (code / "folder").symlink_to("/etc")
    (code / "dead").symlink_to("nowhere")
    os.mkfifo(code / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(code)
        listening.bind("s")  # its whole path would be too long for one
        place = Copies(LocalStore(tmp_path / "place"))
        place.take(workspace)

    assert place.verify().backups == 1
    restore(place, tmp_path / "again")

    again = tmp_path / "again" / "jobs" / job.id / "attempts" / "1" / "code"
    assert sorted(path.relative_to(again).as_posix() for path in again.rglob("*")) == [
        "out",
        os.fsdecode(b"out/caf\xe9 \xff"),
        "out/numbers.txt",
        "train.py",
    ]


def test_an_index_of_metrics_is_not_copied_and_events_go_on_where_they_were(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_index, "LONG_BYTES", -1)
    (job,) = workspace.catalog.jobs.list(limit=1)
    log = workspace.job_folder(job.id) / "metrics.jsonl"
    metric_index.charted(log, 10, most_rows=100)
    assert (log.parent / metric_index.FOLDER).is_dir()
    copies = Copies(LocalStore(tmp_path / "place"))
    copies.take(workspace)

    restore(copies, tmp_path / "restored")

    there = Workspace(tmp_path / "restored")
    assert (there.job_folder(job.id) / "metrics.jsonl").read_bytes() == log.read_bytes()
    assert not (there.job_folder(job.id) / metric_index.FOLDER).exists()
    told = workspace.catalog.events.list()
    assert there.catalog.events.list()[: len(told)] == told
    there.catalog.jobs.start("train", "flowers", {})
    numbers = [each.number for each in there.catalog.events.list()]
    assert numbers == list(range(1, len(numbers) + 1))
    there.close()


def test_a_bundle_that_is_damaged_or_gone_is_named(workspace: Workspace, tmp_path: Path) -> None:
    digest = submitted(workspace, "first").spec["bundle"]
    submitted(workspace, "second", bundle=digest)
    kept = workspace.root / "bundles" / f"{digest}.zip"
    right = kept.read_bytes()
    place = Copies(LocalStore(tmp_path / "place"))
    for wrong in (right[:-1] + b"x", right[:-1], None):
        if wrong is None:
            kept.unlink()
        else:
            kept.write_bytes(wrong)
        with pytest.raises(Damaged, match=rf"1 files are gone or are not, e\.g\. .*{digest}\.zip"):
            place.take(workspace)
        with pytest.raises(Damaged, match=rf"{digest}\.zip"):
            contents.verify(workspace)
    kept.write_bytes(right)
    place.take(workspace)
