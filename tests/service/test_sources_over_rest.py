"""Which folders a caller over REST may have read: those below the declared roots, whatever leads elsewhere."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asgi_calls import Answer, Lifespan, Service, check_problem
from mms_sdk.service.app import create_app
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny


@pytest.fixture
def root(tmp_path: Path, tiny: Tiny) -> Path:
    """The one folder that may be read; beside it lies one that may not."""
    for name in ("root/photos/ant", "root/empty", "secret/photos/ant", "root-too"):
        (tmp_path / name).mkdir(parents=True)
    picture = (tiny.photos / "ant" / "000.png").read_bytes()
    (tmp_path / "root" / "photos" / "ant" / "a.png").write_bytes(picture)
    (tmp_path / "secret" / "photos" / "ant" / "b.png").write_bytes(picture)
    return tmp_path / "root"


@pytest.fixture
def at(root: Path, empty: Workspace, service: Service) -> Iterator[Service]:
    """A server that may read below `root`, with an empty workspace."""
    app = create_app(empty, ServerSettings(source_roots=(root,)))
    lifespan = Lifespan(app)
    service.runner.run(lifespan.begin())
    yield replace(service, app=app, workspace=empty, tokens={"admin": empty.catalog.tokens.issue("boss", "admin")})
    service.runner.run(lifespan.end())


def ingest(service: Service, path: Any) -> Answer:
    body = {"source": {"type": "image-folder", "path": str(path)}, "split": {"train": 1, "val": 0, "test": 0}}
    return service.ask("POST", "/v1/datasets/new:ingest", json=body)


def predict(service: Service, path: Any) -> Answer:
    return service.ask("POST", "/v1/predictions", json={"model": "tiny", "source": {"path": str(path)}})


@pytest.mark.parametrize("path", ["/", "/etc", "photos", ".", "..", "~", "", "/proc/self/root/etc", "file:///etc"])
def test_a_server_without_roots_reads_no_folder_at_all(service: Service, path: str) -> None:
    jobs = len(service.workspace.catalog.jobs.list(limit=500))

    for answer in (ingest(service, path), predict(service, path)):
        check_problem(answer, 403, "no folder at all", "--source-root", "embedded")
    assert len(service.workspace.catalog.jobs.list(limit=500)) == jobs


def test_a_folder_below_a_root_is_read(at: Service, root: Path) -> None:
    for path in (root / "photos", root / "empty" / ".." / "photos", f"{root}/./photos/"):
        answer = ingest(at, path)

        assert answer.status == 202, answer
        assert (job := ended(at, answer))["state"] == "succeeded", job


@pytest.mark.parametrize(
    "path",
    ["{root}/..", "{root}/../secret", "{root}/photos/../../secret/photos", "{root}-too", "{root}/../root-too", "/"],
)
def test_a_way_out_of_the_root_is_refused(at: Service, root: Path, path: str) -> None:
    check_problem(ingest(at, path.format(root=root)), 403, "only below", str(root))


def test_a_link_out_of_the_root_is_refused_as_the_folder_itself_and_within_it(at: Service, root: Path) -> None:
    secret = root.parent / "secret"
    (root / "out").symlink_to(secret / "photos")
    check_problem(ingest(at, root / "out"), 403, "only below")
    check_problem(ingest(at, root / "out" / "ant"), 403, "only below")
    check_problem(ingest(at, root), 403, "has a link to", str(secret))


@pytest.mark.parametrize("target", ["../../../secret/photos/ant/b.png", "../../../secret/photos", "../../../nowhere"])
def test_a_link_deep_within_the_folder_that_leads_out_is_refused(at: Service, root: Path, target: str) -> None:
    (root / "photos" / "ant" / "c.png").symlink_to(target)

    check_problem(ingest(at, root / "photos"), 403, "has a link to")


def test_a_link_behind_a_link_is_followed_before_it_is_allowed(at: Service, root: Path) -> None:
    (root / "photos" / "bee").symlink_to(root / "empty")
    assert ingest(at, root / "photos").status == 202

    (root / "empty" / "deeper").symlink_to(root.parent / "secret")
    check_problem(ingest(at, root / "photos"), 403, "has a link to", "secret")


def test_each_source_of_several_is_looked_at(at: Service, root: Path) -> None:
    def several(*paths: Path) -> Answer:
        sources = [{"type": "image-folder", "path": str(path)} for path in paths]
        body = {"source": {"type": "union", "sources": sources, "names": ["one", "two"]}}
        return at.ask("POST", "/v1/datasets/new:ingest", json={**body, "split": {"train": 1, "val": 0, "test": 0}})

    check_problem(several(root / "photos", root.parent / "secret" / "photos"), 403, "only below", "secret")
    answer = several(root / "photos", root / "photos")
    assert (answer.status, ended(at, answer)["result"]["rows"]) == (202, 2)


def test_links_in_a_circle_within_the_root_end(at: Service, root: Path) -> None:
    (root / "photos" / "again").symlink_to(root / "photos")
    (root / "photos" / "ant" / "self.png").symlink_to("self.png")
    os.link(root / "photos" / "ant" / "a.png", root / "photos" / "ant" / "same.png")

    answer = ingest(at, root / "photos")

    assert answer.status == 202
    assert ended(at, answer)["result"]["rows"] == 2


def test_a_root_that_is_a_link_allows_what_it_leads_to(empty: Workspace, service: Service, root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    app = create_app(empty, ServerSettings(source_roots=(link,)))
    at = replace(service, app=app, tokens={"admin": empty.catalog.tokens.issue("boss", "admin")})

    assert ingest(at, link / "photos").status == 202
    assert ingest(at, root / "photos").status == 202
    check_problem(ingest(at, root.parent / "secret"), 403)
    app._app._otherwise.state.service.jobs.close()


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-that-name/x"])
def test_what_is_no_path_is_the_askers_mistake(service: Service, at: Service, path: str) -> None:
    for each in (service, at):
        check_problem(ingest(each, path), 400, "path of a folder")


def test_a_source_without_a_path_is_refused(at: Service) -> None:
    for source in ({}, {"path": None}, {"path": 5}, {"path": ["/"]}):
        told = {"type": "image-folder", **source}
        check_problem(at.ask("POST", "/v1/datasets/new:ingest", json={"source": told}), 400, "path")
    check_problem(at.ask("POST", "/v1/datasets/new:ingest", json={"source": {"path": "/"}}), 400, "type")


def test_tables_are_read_below_a_root_and_nowhere_else(at: Service, root: Path) -> None:
    (root / "in").mkdir()
    (root / "in" / "rows.csv").write_text("a\n" + "\n".join(map(str, range(20))))
    (root.parent / "out.csv").write_text("secret\n1\n")
    (root / "link.csv").symlink_to(root.parent / "out.csv")

    def asked(kind: str, path: str) -> int:
        body = {"source": {"type": kind, "path": path}}
        return at.ask("POST", "/v1/datasets/rows:ingest", json=body).status

    for kind in ("csv", "jsonl", "parquet", "arrow"):
        for path in ("../../out.csv", "../link.csv"):
            assert asked(kind, f"{root}/in/{path}") == 403, (kind, path)
        for path in ("*/../../../out.csv", "in/../*.csv", "[i]n/../../out.csv", "**/../x"):
            assert asked(kind, f"{root}/{path}") == 400, (kind, path)
        assert asked(kind, str(root.parent / "out.csv")) == 403
        assert asked(kind, "/**") == 403
    query = {"type": "sql", "url": "sqlite:////etc/passwd", "query": "select 1"}
    check_problem(at.ask("POST", "/v1/datasets/rows:ingest", json={"source": query}), 403, "no database")
    for path in ("rows.csv", "*.csv"):
        body = {"source": {"type": "csv", "path": f"{root}/in/{path}"}}
        assert ended(at, at.ask("POST", "/v1/datasets/rows:ingest", json=body))["result"]["rows"] == 20


def test_a_saved_dataset_is_read_below_a_root_and_nowhere_else(at: Service, root: Path) -> None:
    (root.parent / "secret" / "state.json").write_text("{}")
    (root / "link").symlink_to(root.parent / "secret")

    for path in (root.parent / "secret", root / ".." / "secret", root / "link"):
        body = {"source": {"type": "hugging-face", "path": str(path)}}
        check_problem(at.ask("POST", "/v1/datasets/rows:ingest", json=body), 403, "only below")


def test_a_list_of_addresses_never_leads_to_this_machine_and_its_file_lies_below_a_root(
    at: Service, root: Path
) -> None:
    def asked(**source: Any) -> Answer:
        return at.ask("POST", "/v1/datasets/web:ingest", json={"source": {"type": "http", **source}})

    answer = asked(urls=["http://127.0.0.1:1/x.png", "http://169.254.169.254/latest/meta-data"])
    told = ended(at, answer)["error"]["detail"]
    assert told.count("is not a public address") == 2
    check_problem(asked(urls=["file:///etc/passwd"]), 400, "it is none")
    check_problem(asked(urls=["http://127.0.0.1/x"], networks=["127.0.0.0/8"]), 400, "networks")
    check_problem(asked(path="/etc/passwd"), 403, "only below")
    check_problem(asked(path=f"{root}/../secret/list.csv"), 403, "only below")
    check_problem(asked(urls="/etc/passwd"), 403, "only below")


@pytest.mark.parametrize("kind", ["zarr", "icechunk"])
def test_arrays_are_read_below_a_root_and_nowhere_else(at: Service, root: Path, kind: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")

    for path in (root.parent / "secret", root / ".." / "secret", root / "link"):
        body = {"source": {"type": kind, "path": str(path)}}
        check_problem(at.ask("POST", "/v1/datasets/rows:ingest", json=body), 403, "only below")
    body = {"source": {"type": kind, "path": str(root / "empty")}}
    assert ended(at, at.ask("POST", "/v1/datasets/rows:ingest", json=body))["state"] == "failed"


def test_files_and_shards_are_read_below_a_root_and_nowhere_else(at: Service, root: Path) -> None:
    with tarfile.open(root / "in-0.tar", "w") as archive:
        archive.add(root / "photos" / "ant" / "a.png", "a.png")
    (root.parent / "secret" / "in-0.tar").write_bytes((root / "in-0.tar").read_bytes())
    (root / "out.tar").symlink_to(root.parent / "secret" / "in-0.tar")

    def asked(kind: str, path: str, **fields: Any) -> Answer:
        body = {"source": {"type": kind, "path": path, **fields}, "split": {"train": 1, "val": 0, "test": 0}}
        return at.ask("POST", f"/v1/datasets/{kind}:ingest", json=body)

    for kind in ("files", "webdataset", "video-folder"):
        for path in (
            "{root}/../secret",
            "{root}/out.tar",
            "/**",
            "{root}-too",
            "/{{0..1}}",
        ):
            assert asked(kind, path.format(root=root)).status == 403, (kind, path)
    for kind in ("files", "webdataset"):
        for path in (
            "*/../../secret/*",
            "{{0..1}}/../../secret/in-0.tar",
            "in-{{0..0}}/../../secret/x",
            "../{{0..1}}",
            "**/..",
        ):
            assert asked(kind, f"{root}/{path.format()}").status == 400, (kind, path)
    for kind in ("webdataset", "files"):
        for path in ("~user{1..1}/x.tar", "~*/x.tar", "~[r]oot/x"):
            assert asked(kind, path).status == 400, (kind, path)
    (root / "out.tar").unlink()
    for kind, path in (("files", "photos/**/*.png"), ("webdataset", "in-{0..0}.tar"), ("webdataset", "*.tar")):
        assert ended(at, asked(kind, f"{root}/{path}"))["result"]["rows"] == 1
    check_problem(asked("files", f"{root}/photos", label="(?P<label>"), 400, "a class is that of the 'folder'")


def ended(service: Service, answer: Answer) -> Any:
    """The job, once it has ended."""
    for _ in range(1000):
        job = service.ask("GET", f"/v1/jobs/{answer.json()['id']}").json()
        if job["state"] != "running":
            return job
        time.sleep(0.01)
    raise AssertionError(job)
