"""Model versions of which only the catalog knows."""

from __future__ import annotations

from mms_sdk.schema.model import Lineage, ModelCard, Signature, TensorSpec
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.ids import new_id

CARD = ModelCard(
    task="classification",
    kind="image",
    signature=Signature(
        inputs=(TensorSpec(name="image", dtype="uint8", shape=(2, 2, 1)),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(2,)),),
    ),
    host=(),
    device=(),
    labels=("cat", "dog"),
    metrics={"test/accuracy": 0.5},
    lineage=Lineage(dataset="flowers@1", job="01J", step=7),
    platforms=("cpu",),
    parameters=3,
    created_at="2025-01-01T00:00:00.000Z",
)


def add_version(catalog: Catalog, model: str = "flowers") -> int:
    return catalog.models.add(model, artifact=new_id(), digest="0" * 64, size=10, card=CARD)
