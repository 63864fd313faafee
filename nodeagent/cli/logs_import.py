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
from nodeagent.errors import ConfigError, shown, unread

if TYPE_CHECKING:
    from nodeagent.logs.fluentd.convert import Imported
    from nodeagent.logs.fluentd.pods import PodImport

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
@click.option(
    "--lossy",
    is_flag=True,
    help="Write that YAML though a source or an output goes with Fluentd, and nothing replaces it.",
)
@output_option
def import_(
    file: Path, pod: Path | None, assigned: tuple[str, ...], pod_output: Path | None, lossy: bool, output: Output
) -> None:
    """Print what a Fluentd configuration becomes: the section logs of agent.yaml, and a pod's annotations.

    FLUENT.CONF is that configuration, YAML the pods (or workloads) with a Fluentd sidecar and their ConfigMaps: of
    several, one section comes. What is not taken, or different here, is named by file and line on standard error:
    first what is lost, a source that nobody reads any more or an output that gets nothing, then all else.
    """
    for read in (file, pod):
        if pod_output is not None and read is not None and pod_output.resolve() == read.resolve():
            raise click.UsageError(f"--pod-output {pod_output}: is read, and would be lost: another file is expected")
    environment = dict(_assigned(assigned))
    text = _read(file)
    if _is_kubernetes(text):
        from nodeagent.logs.fluentd.pods import import_pods

        _tell(import_pods(text, str(file), environment), pod_output, lossy, output)
    elif pod is not None:
        from nodeagent.logs.fluentd.pods import import_pods

        _tell(import_pods(_read(pod), str(pod), environment, text), pod_output, lossy, output)
    else:
        from nodeagent.logs.fluentd.convert import FluentdSidecar, convert
        from nodeagent.logs.fluentd.pods import PodImport
        from nodeagent.logs.fluentd.syntax import parse
        from nodeagent.logs.fluentd.values import text_of

        if pod_output:
            raise click.UsageError("--pod-output: of which pod? --pod FILE gives its YAML")
        root = parse(text, str(file), partial(_included, file.parent), lambda value: text_of(value, environment))
        _tell([PodImport("", convert(root, FluentdSidecar(environment)), "")], None, lossy, output)


def _tell(found: list[PodImport], pod_output: Path | None, lossy: bool, output: Output) -> None:
    _check(found[0].imported)
    _tell_notes(found)
    if pod_output is not None and not lossy:
        _refuse_lost(found, pod_output)
    for each in found:
        if each.imported.annotations and pod_output is None:
            said = ", ".join(f"{name}: {value}" for name, value in each.imported.annotations.items())
            print(f"nodeagent: {each.pod}: without Fluentd, and with the annotation {said}", file=sys.stderr)
    logs = dict(found[0].imported.logs)
    emit_one({"logs": logs} if output == "table" else {"logs": logs, "pods": [*map(_row, found)]}, _format(output))
    if pod_output is not None:
        try:
            pod_output.write_text(found[0].text)
        except OSError as error:
            raise ConfigError(f"--pod-output {pod_output}: cannot be written: {error.strerror}") from None


def _format(output: Output) -> Output:
    """Return how it is printed: a table is for a person, who puts the section into agent.yaml."""
    return "yaml" if output == "table" else output


def _row(found: PodImport) -> dict[str, object]:
    notes = [
        {"file": each.place.file, "line": each.place.line, "text": each.text, "lost": each.lost}
        for each in found.imported.notes
    ]
    of_pod = {"pod": found.pod, "annotations": dict(found.imported.annotations)}
    return {**of_pod, "notes": notes, "posFiles": list(found.imported.pos_files)}


def _tell_notes(found: list[PodImport]) -> None:
    """Print what is lost, then what else is different here; of several pods with whose it is."""
    for lost in (True, False):
        for each in found:
            whose = f"{each.pod}: " if len(found) > 1 else ""
            for note in each.imported.notes:
                if note.lost == lost:
                    print(f"nodeagent: {'lost: ' if lost else ''}{whose}{note}", file=sys.stderr)


def _refuse_lost(found: list[PodImport], pod_output: Path) -> None:
    """Raise ConfigError where a pod would be without a Fluentd that does what nothing else does."""
    lost: list[str] = []
    for each in found:
        lost += [f"{each.pod}: {note.place}" for note in each.imported.lost] if not each.stays else []
    if lost:
        raise ConfigError(
            f"--pod-output {pod_output}: is not written: with Fluentd went what nothing replaces ({', '.join(lost)}; "
            "it is named above): mend or remove it in Fluentd's configuration, or give --lossy"
        )


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
        raise ConfigError(unread(path, error)) from None
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
