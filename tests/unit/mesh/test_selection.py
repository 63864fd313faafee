"""Which pods a selector selects: by an index of the labels that somebody asks for, and of no others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.mesh.selection import PodLabels

Step = tuple[str, object, dict[str, str]]
_NAMES = st.sampled_from("abc")
_LABELS = st.dictionaries(_NAMES, st.sampled_from("xy"), max_size=3)
_SCOPE = st.sampled_from(["n", "m", ""])
_PUT = st.tuples(st.just("put"), st.tuples(st.sampled_from("nm"), st.sampled_from("123")), _LABELS)
_NONE: dict[str, str] = {}
_DROP = st.tuples(st.just("drop"), st.tuples(st.sampled_from("nm"), st.sampled_from("123")), st.just(_NONE))
_ASK = st.tuples(st.just("ask"), _SCOPE, _LABELS.filter(bool))
_RELEASE = st.tuples(st.just("release"), _SCOPE, st.just(_NONE))


@given(st.lists(st.one_of(_PUT, _DROP, _ASK, _RELEASE), max_size=30))
def test_whatever_came_before_a_selector_selects_by_what_is_there(steps: list[Step]) -> None:
    index = PodLabels()
    pods: dict[tuple[str, str], dict[str, str]] = {}
    asked: list[tuple[str, dict[str, str]]] = []
    for what, whom, labels in steps:
        if what == "ask":
            asked.append((str(whom), labels))
            index.ask(str(whom), labels)
        elif what == "release" and asked:
            index.release(*asked.pop())
        elif isinstance(whom, tuple):
            pods.pop(whom, None)
            if what == "put":
                pods[whom] = labels
                index.put(whom, labels)
            else:
                index.drop(whom)
        for scope, selector in asked:
            expected = [pod for pod in pods if scope in ("", pod[0]) and selector.items() <= pods[pod].items()]
            assert sorted(index.selected(scope, selector)) == sorted(expected)
    for scope, selector in asked:
        index.release(scope, selector)
    for pod in pods:
        assert index.terms(pod) == []
        index.drop(pod)
    assert not index._pods._sets and not index._in._sets, "nothing is kept of what is gone"


def test_labels_that_nobody_asks_for_are_in_no_index() -> None:
    index = PodLabels()
    index.put(("n", "p"), {f"l{number}": "v" for number in range(3000)})
    index.ask("n", ["l7", "other"])
    assert index.terms(("n", "p")) == [("n", "l7", "v")]
    assert len(index._pods._sets) == 1
