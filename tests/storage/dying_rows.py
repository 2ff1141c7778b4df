"""Rows of the datasets whose writers die: those that were there, and those that are added."""

from __future__ import annotations

from small_datasets import content_of

OLD, ADDED = content_of(11, seed=1), content_of(7, seed=9)
