"""Drawings of studies: where points and lines stand."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

from mms_sdk import drawings


def test_points_stand_by_their_values_and_the_best_goes_down_in_steps() -> None:
    values = [3.0, math.nan, 1.0, 2.0]
    drawn = drawings.scatter(values, [3.0, 3.0, 1.0, 1.0], ("1", "3"), "a <study>")
    root = ET.fromstring(drawn)
    places = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in root.iter("circle")]
    left, width, height, inset = 70, 360, 120, 2.5
    assert places == [(left, inset), (left + width * 2 / 3, inset + height), (left + width, inset + height / 2)]
    (path,) = [each.get("d") for each in root.iter("path")]
    assert path == "M70.0 2.5H190.0V2.5H310.0V122.5H430.0V122.5"
    assert root.get("aria-label") == "a <study>"
    _, _, right, bottom = (float(number) for number in (root.get("viewBox") or "").split())
    assert all(x + inset <= right and y + inset <= bottom for x, y in places)


def test_numbers_that_are_all_the_same_or_as_large_as_there_are_have_a_place() -> None:
    for values in ([2.0, 2.0], [-1.7e308, 1.7e308], [math.nan], []):
        assert "nan" not in drawings.scatter(values, values, ("", ""), "all")
        assert "inf" not in drawings.scatter(values, values, ("", ""), "all")


def test_lines_go_through_their_places_and_names_are_no_markup() -> None:
    axes = [("<lr>", [(0.0, "1"), (1.0, "10")]), ("kind", [(0.0, "a"), (0.5, "b"), (1.0, "c")])]
    drawn = drawings.parallel(axes, [((0.0, 1.0), "#123456"), ((0.5, 0.5), "#abcdef")], "two", height=100)
    root = ET.fromstring(drawn)
    assert [each.get("points") for each in root.iter("polyline")] == ["0,134.0 130,34.0", "0,84.0 130,84.0"]
    assert [each.text for each in root.iter("text")] == ["<lr>", "1", "10", "kind", "a", "b", "c"]
    assert re.findall(r'stroke="(#\w+)"', drawn) == ["#123456", "#abcdef"]
