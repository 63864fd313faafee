"""What each record carries of its pod is bounded: a line of two bytes carries it too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.process.origin import LABELS_BYTES, OriginFacts, make_origin
from nodeagent.vocabulary import PodUid
from tests.unit.logs.process.strict import strict

NAMES = st.text("ab./é", min_size=1, max_size=300)
PAIRS = st.dictionaries(NAMES, st.text(max_size=5000), max_size=8)


@given(PAIRS, PAIRS, st.booleans(), st.integers(1, 300))
def test_labels_and_annotations_are_bounded(
    labels: dict[str, str], annotations: dict[str, str], flat: bool, times: int
) -> None:
    many = {f"{name}{at}": value for name, value in labels.items() for at in range(times)}
    facts = OriginFacts(PodUid("u"), "n", "p", "c", "", "h", many, annotations)
    made = make_origin(facts, "tag", ("s",), flatten_dots=flat)
    assert len(made.members) <= LABELS_BYTES + 300
    about = strict(b"{" + made.members + b"}")["kubernetes"]
    there = {**about.get("labels", {})}, {**about.get("annotations", {})}
    wanted = len({name.translate({46: 95, 47: 95}) if flat else name for name in many})
    wanted += len({name.translate({46: 95, 47: 95}) if flat else name for name in annotations})
    assert sum(map(len, there)) + about.get("left_out", 0) == wanted
    if sum(len(name) + len(value) for name, value in (*many.items(), *annotations.items())) < 500:
        assert "left_out" not in about
