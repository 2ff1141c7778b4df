from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from disk_like_hadoop import ObjectsLikeHadoop, ObjectsWithoutRules
from s3_buckets import make_bucket
from small_datasets import add, content_of

from mms_sdk.errors import InvalidRequest, NotWritable, StorageFull, Unavailable
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.opening import objects_at, refuse_shared_writing, store_at
from mms_sdk.storage.stores.remote import RemoteStore
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing.stores import StoreConformance


class TestStore(StoreConformance):
    """On each store that the fixture `store` makes."""


class TestHadoop(StoreConformance):
    """On files that are renamed as HDFS renames them."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "hadoop").mkdir()
        make = partial(ObjectsLikeHadoop, str(tmp_path / "hadoop"))
        return RemoteStore(make, copies=tmp_path / "copies", max_bytes=2**30)


def test_a_store_that_overwrites_what_it_is_asked_to_create_is_refused(tmp_path: Path, store: Store) -> None:
    refuse_shared_writing(store)
    assert store.names("") == []
    (tmp_path / "lax").mkdir()
    lax = RemoteStore(partial(ObjectsWithoutRules, str(tmp_path / "lax")), copies=tmp_path / "other", max_bytes=2**30)
    with pytest.raises(InvalidRequest, match=r"overwrites it, so that commits would be lost"):
        refuse_shared_writing(lax)
    assert lax.names("") == []


def test_a_url_names_a_folder_or_an_object_store(tmp_path: Path) -> None:
    assert store_at(tmp_path) == LocalStore(tmp_path)
    assert store_at(f"file://{tmp_path}") == LocalStore(tmp_path)
    for url in ("s3://bucket/a/b", "gs://bucket/a", "az://container/a", "hdfs://namenode:8020/a"):
        assert store_at(f"{url}/", copies=tmp_path).url == url
    with pytest.raises(InvalidRequest, match="is copied to this machine; name a folder for it"):
        store_at("s3://bucket")


def test_an_hdfs_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="check the address"):
        store_at("webhdfs://127.0.0.1:9/data", copies=tmp_path).read("a")


def test_google_and_azure_are_asked_through_the_same_calls(tmp_path: Path) -> None:
    """Without a network what can be seen is that their clients are made, and what they say when nobody answers."""
    for url in ("gs://bucket/a", "az://container/a"):
        assert objects_at(url)().url == url


def test_a_full_disk_stops_what_is_copied_and_leaves_nothing(
    far_store: Store, tmp_path: Path, small_disk: object
) -> None:
    disk = small_disk(256)  # type: ignore[operator]
    source = tmp_path / "large"
    source.write_bytes(bytes(2**20))
    far_store.upload("large", source)
    _, (make, _, size, prefix) = far_store.__reduce__()  # type: ignore[misc]
    with pytest.raises(StorageFull):
        RemoteStore(make, copies=disk, max_bytes=size, prefix=prefix).open("large")
    assert [path for path in disk.rglob("*") if path.is_file()] == []


def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotWritable, match="there is a file of that name"):
        LocalStore(tmp_path / "file").create("a", b"x")


def test_a_workspace_keeps_its_datasets_on_s3(moto: str, tmp_path: Path) -> None:
    url = make_bucket(moto)
    workspace = Workspace(tmp_path / "here", datasets=url)
    content = content_of(12)
    add(workspace.open_or_create_dataset("flowers"), content)
    assert not (tmp_path / "here" / "datasets").exists()

    there = Workspace(tmp_path / "there", datasets=url)
    assert there.dataset_names() == ["flowers"]
    assert there.dataset("flowers").snapshot().values("label").tolist() == content["label"].tolist()

    with pytest.raises(InvalidRequest, match=r"stays with the store of datasets it was made with; .* set MMS_DATASETS"):
        Workspace(tmp_path / "here")
    Workspace(tmp_path / "plain")
    with pytest.raises(InvalidRequest, match=r"that of .* is datasets, asked for was s3://.*; unset MMS_DATASETS"):
        Workspace(tmp_path / "plain", datasets=url)
