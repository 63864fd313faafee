"""Which checks of the VM lab are tried, on which machines."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from tests.vm import checks, documented
from tests.vm.machines import NAMES, Answer
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


def test_what_is_of_one_machine_takes_no_other() -> None:
    alone = {each.name: each.nodes for each in checks.CHECKS if set(each.nodes) != set(NAMES)}
    assert alone == dict.fromkeys(("own service", "kernel TLS", "compare"), ("node-a",))


def test_every_command_that_the_page_has_for_the_machines_is_tried() -> None:
    page = documented.PAGE.read_text()
    found = list(documented.commands(page))
    assert len(found) == page.split("```")[1].count("vagrant ssh")
    assert {each.machine for each in found} == set(NAMES)
    assert {name for each in found for name in each.identities} == {checks.CLIENT, checks.LEGACY_IDENTITY}


@pytest.mark.parametrize(
    ("answer", "as_said"),
    [
        (Answer(0, f"far URI={checks.CLIENT}\n", ""), True),
        (Answer(0, "far\n", ""), False),
        (Answer(7, checks.CLIENT, "curl: (7)"), False),
    ],
)
def test_a_command_that_does_not_answer_as_the_page_says_fails(answer: Answer, as_said: bool) -> None:
    assert checks.as_said(answer, (checks.CLIENT,)) == as_said


def test_a_command_of_which_nothing_is_said_has_to_print_something() -> None:
    assert checks.as_said(Answer(0, "POD\n", ""), ())
    assert not checks.as_said(Answer(0, "\n", ""), ())


def test_what_the_page_has_for_a_service_is_a_script_and_settings() -> None:
    commands, settings = documented.service(documented.INSTALL.read_text(), "shop")
    assert subprocess.run(["sh", "-n"], input=commands, text=True, check=False).returncode == 0
    assert "shop-network.service" in commands and commands.rstrip().endswith("systemctl restart shop")
    assert [each["unit"] for each in yaml.safe_load(settings)["services"]] == ["shop.service"]
