"""The alerts of daemonset/overlays/prometheus-operator: promtool, on alerts.yaml beside this file, and
the metrics that they ask for, which must be ours.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.telemetry import metrics
from nodeagent.telemetry.metrics import Metric

ROOT = Path(__file__).parents[3]
RULES = ROOT / "daemonset" / "overlays" / "prometheus-operator" / "rules.yaml"
CASES = Path(__file__).with_name("alerts.yaml")
OURS = {each.name: set(each.labels) for each in vars(metrics).values() if isinstance(each, Metric)}
SCRAPED = frozenset({"job", "node"})
"""Labels that the scrape adds."""


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(RULES.read_text())["spec"]
    return spec


def test_each_alert_fires_when_it_should_and_not_before(rules: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(CASES, tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_ask_for_jobs_that_are_scraped(rules: dict[str, Any]) -> None:
    monitors = {each["metadata"]["name"] for each in yaml.safe_load_all(RULES.with_name("monitors.yaml").read_text())}
    asked = set(re.findall(r'job="nodeagent-system/([\w-]+)"', yaml.safe_dump(rules, width=10_000)))
    assert asked == monitors


def test_every_alert_has_a_case(rules: dict[str, Any]) -> None:
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tried = {
        case["alertname"]
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tried == alerts


def test_alerts_ask_for_metrics_that_there_are(rules: dict[str, Any]) -> None:
    for group in rules["groups"]:
        for rule in group["rules"]:
            for name, matchers in re.findall(r"\b(nodeagent_\w+|up)\b(?:\{([^}]*)\})?", rule["expr"]):
                known = OURS.get(name, set()) | SCRAPED
                assert name == "up" or name in OURS, rule["alert"]
                assert set(re.findall(r"(\w+)(?:=~|=|!=)", matchers)) <= known, rule["alert"]
