"""Opening a source of samples: by its type."""

from __future__ import annotations

from mms_sdk.compute.data.sources.folders import list_folder
from mms_sdk.compute.data.sources.prepared import open_prepared
from mms_sdk.compute.data.sources.samples import Collection
from mms_sdk.schema.sources import TFDS, ImageFolder, SampleSource


def open_samples(source: SampleSource) -> Collection:
    """Looks through a source of samples.

    Raises:
        InvalidRequest: There is no such source.
        NothingToIngest: Nothing is in it.
    """
    if isinstance(source, TFDS):
        return open_prepared(source)
    entries, rejects = list_folder(source)
    return Collection(entries=entries, rejects=rejects, medium="image" if isinstance(source, ImageFolder) else "audio")
