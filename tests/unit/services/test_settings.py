"""What agent.yaml may say of services, and what is said of what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.config import load
from nodeagent.errors import ConfigError
from nodeagent.services.objects import file_name

LEAST: dict[str, Any] = {
    "redirect": {"cgroup": "/sys/fs/cgroup"},
    "identity": {"caDirectory": "/ca"},
}
LEGACY = {"unit": "legacy.service"}


def loaded(folder: Path, settings: dict[str, Any]) -> Any:
    file = folder / "agent.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **settings}))
    return load(file).services


def test_a_unit_alone_is_enough(tmp_path: Path) -> None:
    (found,) = loaded(tmp_path, {"source": "/mesh", "services": [LEGACY]})
    assert (found.unit, found.namespace, found.service_account, found.labels) == (
        "legacy.service",
        "default",
        "default",
        {},
    )


@pytest.mark.parametrize("unit", ["a@1.service", r"dev-disk\x2d1.service", "A_b:c.service"])
def test_a_units_name_is_systemds(tmp_path: Path, unit: str) -> None:
    assert loaded(tmp_path, {"source": "/mesh", "services": [{"unit": unit}]})[0].unit == unit


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "/mesh", "services": [{"unit": "legacy"}]}, "services.0.unit"),
        ({"source": "/mesh", "services": [{"unit": "a/b.service"}]}, "services.0.unit"),
        ({"source": "/mesh", "services": [{"unit": "web@.service"}]}, "services.0.unit"),
        ({"source": "/mesh", "services": [{"unit": "@.service"}]}, "services.0.unit"),
        ({"source": "/mesh", "services": [LEGACY, LEGACY]}, "is given 2 times"),
        ({"source": "/mesh", "services": [{**LEGACY, "account": "x"}]}, "services.0.account"),
        ({"source": "/mesh", "services": [{**LEGACY, "namespace": "Old"}]}, "services.0.namespace"),
        ({"source": "/mesh", "services": [{**LEGACY, "name": "n" * 214}]}, "services.0.name.*213 characters"),
        ({"kubernetes": {}, "services": [LEGACY]}, "services goes with source"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, settings)


def test_names_fill_a_files_name(tmp_path: Path) -> None:
    (found,) = loaded(tmp_path, {"source": "/mesh", "services": [{**LEGACY, "name": "n" * 213}]})
    (tmp_path / f".{file_name(found.namespace, found.name)}.{2**22}").touch()
