"""Which checks of the VM lab are tried, on which machines."""

from __future__ import annotations

import pytest

from tests.vm import checks
from tests.vm.machines import NAMES
from tests.vm.telling import Failed


def test_all_are_tried_unless_some_are_named() -> None:
    assert checks.chosen("") == list(checks.CHECKS)


def test_those_that_are_named_are_tried_in_their_order() -> None:
    assert [each.name for each in checks.chosen("uninstall, kernel path,check")] == [
        "check",
        "kernel path",
        "uninstall",
    ]


def test_a_name_that_no_check_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(Failed, match=r"CHECKS: compares: allowed: check, .*compare, uninstall"):
        checks.chosen("check,compares")


def test_the_comparison_takes_one_machine() -> None:
    assert [each.nodes for each in checks.CHECKS if set(each.nodes) != set(NAMES)] == [("node-a",)]
