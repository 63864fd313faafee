"""Places by annotation."""

from __future__ import annotations

import pytest

from nodeagent.places.annotation import CGROUP, NETNS, AnnotationPlaces
from nodeagent.places.place import Place
from nodeagent.resources.objects import PodObject, parse


def pod(annotations: dict[str, str]) -> PodObject:
    found = parse(
        {"kind": "Pod", "metadata": {"name": "p", "namespace": "d", "uid": "u", "annotations": annotations}, "spec": {}}
    )
    assert isinstance(found, PodObject)
    return found


@pytest.mark.parametrize(
    ("annotations", "place"),
    [
        ({NETNS: "/run/netns/p", CGROUP: "/sys/fs/cgroup/p"}, Place("/run/netns/p", "/sys/fs/cgroup/p")),
        ({NETNS: "/run/netns/p"}, Place("/run/netns/p", "")),
        ({NETNS: "/run/netns/p", CGROUP: "/sys\0"}, Place("/run/netns/p", "")),
        ({CGROUP: "/sys/fs/cgroup/p"}, None),
        ({NETNS: "/run\0/netns", CGROUP: "/sys/fs/cgroup/p"}, None),
        ({}, None),
    ],
)
def test_a_place_is_what_the_annotations_say(annotations: dict[str, str], place: Place | None) -> None:
    assert AnnotationPlaces().of(pod(annotations)) == place
