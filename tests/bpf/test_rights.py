"""``nodeagent check`` with few capabilities: it tries what the agent needs, and needs no more for that."""

from __future__ import annotations

import json
import subprocess

import pytest

from nodeagent.redirect import rights
from tests.bpf.test_check import CHECK

LEAST = ("sys_admin", "setuid", "setgid")


def check(*held: str) -> tuple[int, dict[str, dict[str, object]]]:
    """Run it with only the capabilities *held*; return its exit status and its rows by feature."""
    sets = ",".join(["-all", *(f"+{one}" for one in held)])
    command = ["setpriv", "--bounding-set", sets, "--inh-caps", "-all", "--no-new-privs", *CHECK, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, {row["feature"]: row for row in json.loads(done.stdout)}


def test_the_least_that_carries_traffic_will_do() -> None:
    """Verdict: the whole capture is tried with real connections; what is missing is named, with what is lost."""
    status, rows = check(*LEAST)
    assert status == 0, rows
    assert rows["capture (BCC, all programs)"]["state"] == "ok"
    lost = {name: row["lost"] for name, row in rows.items() if name.startswith("CAP_")}
    assert lost == {f"CAP_{right.name}": right.lost for right in rights.RIGHTS if right.name.lower() not in LEAST}
    assert (rows["closing connections"]["state"], rows["closing connections"]["detail"]) == (
        "absent",
        "Operation not permitted",
    )


@pytest.mark.parametrize("missing", LEAST)
def test_what_it_cannot_do_without_is_named(missing: str) -> None:
    status, rows = check(*(one for one in LEAST if one != missing))
    assert status == 1
    row = rows[f"CAP_{missing.upper()}"]
    assert (row["state"], row["needed"]) == ("missing", True)
