"""``nodeagent logs import``: Fluentd's configuration as ours."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from nodeagent.cli.output import Output, emit_one, output_option
from nodeagent.errors import ConfigError, shown

if TYPE_CHECKING:
    from nodeagent.logs.fluentd.convert import Imported

MAX_BYTES: Final = 4 << 20


@click.command("import")
@click.argument("file", metavar="FLUENT.CONF|YAML", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--pod",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The YAML of the pod or workload in which Fluentd runs, where FLUENT.CONF does not stand in it.",
)
@click.option(
    "--env", "assigned", multiple=True, metavar="NAME=VALUE", help="What #{ENV['NAME']} is, before the pod's."
)
@click.option(
    "--pod-output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the pod's YAML, without Fluentd and with its annotations.",
)
@output_option
def import_(file: Path, pod: Path | None, assigned: tuple[str, ...], pod_output: Path | None, output: Output) -> None:
    """Print what a Fluentd configuration becomes: the section logs of agent.yaml, and a pod's annotations.

    FLUENT.CONF is that configuration, YAML the pod (or workload) with a Fluentd sidecar and its ConfigMap. What is
    not taken, or different here, is named by file and line on standard error.
    """
    for read in (file, pod):
        if pod_output is not None and read is not None and pod_output.resolve() == read.resolve():
            raise click.UsageError(f"--pod-output {pod_output}: is read, and would be lost: another file is expected")
    environment = dict(_assigned(assigned))
    text = _read(file)
    if _is_kubernetes(text):
        from nodeagent.logs.fluentd.pods import import_pods

        found = import_pods(text, str(file), environment)
        _tell([(each.pod, each.imported) for each in found], found[0].text, pod_output, output)
    elif pod is not None:
        from nodeagent.logs.fluentd.pods import import_pods

        found = import_pods(_read(pod), str(pod), environment, text)
        _tell([(each.pod, each.imported) for each in found], found[0].text, pod_output, output)
    else:
        from nodeagent.logs.fluentd.convert import FluentdSidecar, convert
        from nodeagent.logs.fluentd.syntax import parse
        from nodeagent.logs.fluentd.values import text_of

        if pod_output:
            raise click.UsageError("--pod-output: of which pod? --pod FILE gives its YAML")
        root = parse(text, str(file), partial(_included, file.parent), lambda value: text_of(value, environment))
        imported = convert(root, FluentdSidecar(environment))
        _tell([("", imported)], "", None, output)


def _tell(found: list[tuple[str, Imported]], text: str, pod_output: Path | None, output: Output) -> None:
    for pod, imported in found:
        _check(imported)
        for note in imported.notes:
            print(f"nodeagent: {note}", file=sys.stderr)
        if imported.annotations and pod_output is None:
            said = ", ".join(f"{name}: {value}" for name, value in imported.annotations.items())
            print(f"nodeagent: {pod}: without Fluentd, and with the annotation {said}", file=sys.stderr)
        if output == "table":  # for a person, who puts it into agent.yaml
            emit_one({"logs": dict(imported.logs)}, "yaml")
        else:
            notes = [{"file": each.place.file, "line": each.place.line, "text": each.text} for each in imported.notes]
            row = {"pod": pod, "logs": dict(imported.logs), "annotations": dict(imported.annotations), "notes": notes}
            emit_one({**row, "posFiles": list(imported.pos_files)}, output)
    if pod_output is not None:
        try:
            pod_output.write_text(text)
        except OSError as error:
            raise ConfigError(f"--pod-output {pod_output}: cannot be written: {error.strerror}") from None


def _check(imported: Imported) -> None:
    """Raise ConfigError where the agent would not take what came out: it says which field, and what is allowed."""
    from pydantic import ValidationError

    from nodeagent.logs.settings import LogSettings
    from nodeagent.sections import told

    try:
        LogSettings.model_validate(imported.logs)
    except ValidationError as error:
        raise ConfigError(
            f"what comes out would not be taken by the agent: logs.{told(error)}: change that in Fluentd's "
            "configuration before it is imported"
        ) from None


def _is_kubernetes(text: str) -> bool:
    """Say whether *text* is YAML or JSON of Kubernetes' objects: Fluentd's format has no such line."""
    return any(line.startswith(("apiVersion:", "kind:", '  "kind"', '{"')) for line in text.splitlines())


def _assigned(values: Iterable[str]) -> Iterable[tuple[str, str]]:
    for each in values:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--env {shown(each)}: NAME=VALUE is expected")
        yield name, value


def _read(path: Path) -> str:
    from nodeagent.resources.load import standard_input

    try:
        if str(path) == "-":
            return standard_input(MAX_BYTES)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: allowed: up to {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None


def _included(folder: Path, asked: str) -> dict[str, str]:
    """Return the files that ``@include`` means, beside the configuration or below. Raises ConfigError."""
    if "://" in asked:
        raise ConfigError(
            f"@include {asked}: a configuration from a server is not fetched: save it beside the first one"
        )
    wanted = asked.removeprefix("./")
    if wanted.startswith("/") or ".." in Path(wanted).parts:
        raise ConfigError(f"@include {asked}: only files beside {folder} and below are read: copy it there")
    if not set("*?[") & set(wanted):
        return {wanted: _read(folder / wanted)}
    names = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
    return {name: _read(folder / name) for name in names if fnmatch.fnmatchcase(name, wanted)}
