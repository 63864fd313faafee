"""Whatever stands where a command expects a file, it ends with one line: no traceback, nothing done."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cli import compare
from nodeagent.cli.main import main
from nodeagent.errors import NodeagentError

COMMANDS = (
    "run -c",
    "run --replace -c",
    "check -c",
    "check --cluster --kubeconfig",
    "check --cluster --overlay",
    "check --cluster -f",
    "install --kubeconfig",
    "install --overlay",
    "install -f",
    "install --dry-run -f",
    "uninstall -c",
    "uninstall --cluster --kubeconfig",
    "uninstall --cluster -f",
    "inject -f",
    "inject -f /dev/null --values",
    "inject -f /dev/null --policies",
    "inject -f /dev/null --template",
    "logs import",
    "logs import /dev/null --pod",
    "lab up --name badinput --agent-config",
    "lab apply --name badinput -f",
    "lab delete --name badinput -f",
    "ca serve -c",
    "ca rotate-root prepare --secret a/b --kubeconfig",
    "ca rotate-root finish -d",
    "sidecar -c",
    "webhook -c",
    "compare --estimate",
    "compare --estimate /dev/null --top",
    "compare --against",
    "ready --admin",
    "get pods --admin",
)
CONTENTS = {
    "binary": b"\x80\x81\x00\xff",
    "no UTF-8": "ärger: 1\n".encode("latin-1"),
    "empty": b"",
    "deep": b"[" * 100_000,
    "deep mapping": b'{"a":' * 50_000,
    "a list": b"- a\n- kind: Pod\n",
    "a text": b"just text\n",
    "wrong types": b"apiVersion: [1]\nkind: {a: b}\nmetadata: [x]\nusers: x\ncurrent-context: [y]\n",
}


def _written(content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "file.yaml").write_bytes(content)
        return str(folder / "file.yaml")

    return make


def _folder(folder: Path) -> str:
    (folder / "inner").mkdir()
    return str(folder / "inner")


PLACES: dict[str, Callable[[Path], str]] = {
    **{name: _written(content) for name, content in CONTENTS.items()},
    "a folder": _folder,
    "nothing there": lambda folder: str(folder / "none.yaml"),
    "a file as a folder": lambda folder: f"{_written(b'')(folder)}/x.yaml",
    "no file's name": lambda folder: str(folder / ("x" * 300)),
    "no rights": lambda folder: str(folder / "shut" / "x.yaml"),
    "a folder without rights": lambda folder: str(folder / "shut"),
}


@contextmanager
def _nobody(folder: Path) -> Iterator[None]:
    """Have no rights in *folder*/shut, root neither."""
    shut = folder / "shut"
    shut.mkdir(mode=0o700)
    (shut / "x.yaml").touch()
    is_root = os.geteuid() == 0
    shut.chmod(0o700 if is_root else 0)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        shut.chmod(0o700)


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    words = capsys.readouterr().err
    assert ended.value.code in (0, 1, 2, 3), words
    assert "Traceback" not in words
    if ended.value.code:
        (line,) = words.splitlines()
        assert line.startswith("nodeagent: ")
        assert len(line) > len("nodeagent: ")


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison, daemon or lab begins, whatever is taken for good."""

    def begun(*given: object, **more: object) -> Any:
        raise AssertionError("it began")

    def refuse(*given: object, **more: object) -> Any:
        raise NodeagentError("a lab says for itself what of agent.yaml is wrong")

    monkeypatch.setattr(compare, "run", begun)
    monkeypatch.setattr("nodeagent.agent.main", begun)
    monkeypatch.setattr("nodeagent.lab.Lab.up", refuse)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_none_is_one_line(
    command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PLACES[place](tmp_path)
    if place.endswith("rights"):
        with _nobody(tmp_path):
            _run([*command.split(), path], capsys)
    else:
        _run([*command.split(), path], capsys)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(
    "command",
    [
        "inject -f",
        "lab apply --name badinput -f",
        "lab delete --name badinput -f",
        "logs import",
        "install --dry-run -f",
    ],
)
def test_standard_input_that_is_nothing_is_one_line(
    command: str, content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(CONTENTS[content]), encoding="utf-8"))
    _run([*command.split(), "-"], capsys)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "1e999"])
@pytest.mark.parametrize(
    "command",
    [
        "compare --wait",
        "lab up --name badinput --wait",
        "check --timeout",
        "install --timeout",
        "uninstall --timeout",
        "sidecar --drain-seconds",
        "ca rotate-root switch -d /nowhere --after",
    ],
)
def test_a_time_is_a_number_that_ends(command: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), value])
    assert ended.value.code == 2
    words = capsys.readouterr().err
    assert command.rsplit(" ", 1)[-1] in words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("uninstall --with-policies", "--with-policies goes with --cluster"),
        ("uninstall --skip-nodes", "--skip-nodes goes with --cluster"),
        ("uninstall --kubeconfig x", "--kubeconfig goes with --cluster"),
        ("check --overlay minimal", "--overlay goes with --cluster"),
        ("check --connectivity", "--connectivity goes with --cluster"),
        ("compare --manifest a.yaml --from a --url http://b/ --modes haproxy", "--modes: haproxy"),
        ("compare --manifest a.yaml --from a --url http://b/ --workloads http", "--workloads"),
        ("compare --manifest a.yaml --from a --url http://b/ --rates 5", "--rates"),
        ("flows --code 9xx", "a status code"),
        ("sidecar-init --dry-run --proxy-port 15006", "must differ"),
        ("explain a b G,ET", "a method"),
        ("explain a b GET items", "a path that begins with /"),
    ],
)
def test_options_that_do_not_fit_are_refused(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), *(["--admin", "/nowhere"] if command.startswith("explain") else [])])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_results_that_could_not_be_written_are_not_measured(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        main(["compare", option, str(tmp_path / "file" / "x")])
    assert ended.value.code == 1
    assert "the results could not be written" in capsys.readouterr().err
