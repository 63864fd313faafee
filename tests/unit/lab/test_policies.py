"""Policies of a lab are files of its object folder, which agents watch; taking one away is removing its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.errors import LabError
from nodeagent.lab.cluster import Lab, Shape
from nodeagent.lab.layout import Layout, write_json


def test_a_policy_is_taken_away(tmp_path: Path) -> None:
    layout = Layout("paper", tmp_path)
    layout.objects.mkdir(parents=True)
    path = layout.object_file("PeerAuthentication", "default", "p")
    write_json(path, {})
    lab = Lab(layout, Shape(1, "direct", {}, False))
    lab.delete(("PeerAuthentication", "default", "p"))
    assert not path.exists()
    with pytest.raises(LabError, match="PeerAuthentication default/p: there is none that can be deleted in lab paper"):
        lab.delete(("PeerAuthentication", "default", "p"))
    write_json(layout.object_file("Pod", "default", "p"), {})
    with pytest.raises(LabError):
        lab.delete(("Pod", "default", "p"))
