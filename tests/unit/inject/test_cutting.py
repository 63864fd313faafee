"""What goes out of YAML goes with its comment, and with nobody else's."""

from __future__ import annotations

import pytest

from nodeagent.inject.round_trip import edit
from nodeagent.resources import yaml_text

LAST = """\
spec:
  containers:
    # the application
    - name: app
      image: app

    # a sidecar,
    # in two lines
    - name: gone
      args:
        - |
          # no comment
          text
      # of its own

  # not the sidecar's
  volumes: []
"""
WITHOUT_LAST = """\
spec:
  containers:
    # the application
    - name: app
      image: app

  # not the sidecar's
  volumes: []
"""
FIRST = """\
spec:
  containers:  # all
    # said of all, or of the first
    - name: gone
      image: x
    # the application
    - name: app
"""
WITHOUT_FIRST = """\
spec:
  containers:  # all
    # said of all, or of the first
    # the application
    - name: app
"""
KEY = """\
# the object
spec:
  a: 1
  # of what goes
  gone:
  - name: x
  - name: y
  # of what stays
  b: 2
"""
WITHOUT_KEY = """\
# the object
spec:
  a: 1
  # of what stays
  b: 2
"""
FLOW = "spec: {containers: [{name: gone}, {name: app}]}\n"
ANCHORED = """\
spec:
  containers:
  # where it is described
  - name: gone
    env: &env
    - name: A
  - name: app
    env: *env
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [(LAST, WITHOUT_LAST), (FIRST, WITHOUT_FIRST), (KEY, WITHOUT_KEY)],
    ids=["the last item", "the first item", "a key with a list"],
)
def test_a_comment_goes_with_what_it_stands_above(text: str, expected: str) -> None:
    old = yaml_text.one(text)
    new = yaml_text.one(expected)
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    assert edit(text, old, new) == expected


@pytest.mark.parametrize("text", [FLOW, ANCHORED], ids=["flow style", "an anchor in it is used further on"])
def test_what_cannot_be_cut_out_goes_nevertheless(text: str) -> None:
    old = yaml_text.one(text)
    assert isinstance(old, dict)
    new = {"spec": {"containers": [each for each in old["spec"]["containers"] if each["name"] == "app"]}}
    assert yaml_text.one(edit(text, old, new)) == new
