"""Where lines come from, as control tells the collector: a container's output, a file in a volume of a
pod, a file of the node, its journal; with what their records carry, and how their lines are to be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from nodeagent.vocabulary import PodUid

EVERY_STREAM: Final = ("", "stdout", "stderr")
"""What a record may be of; a file's and an entry of the journal have none."""
SourceKind = Literal["output", "file", "node", "journal"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How the lines of a source become records, and where these go."""

    parser: str = "auto"
    parser_stderr: str = ""
    """Of an output's stderr, where it is another one."""
    multiline: str = ""
    """Empty: each line is a record."""
    sinks: tuple[str, ...] = ()
    """By name; at least one."""
    without: tuple[str, ...] = ()
    """Streams that are left out: ``stdout``, ``stderr``."""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A source of lines; its files follow each other as they are rotated."""

    key: str
    """The same for as long as the pod lives, and over restarts of the daemon."""
    kind: SourceKind
    uid: PodUid
    """Empty: the node itself."""
    namespace: str
    pod: str
    container: str
    """Empty: no container's output."""
    path: str
    """Of a file: from the volume's name on, or of the node."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the pod."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Of the pod, those that ``logs.metadata.annotations`` names."""
    reading: Reading = Reading()
    unit: str = ""
    """Of a service of the machine, whose output the journal has: as systemd calls it."""

    @property
    def tag(self) -> str:
        """Fluentd's name for it."""
        if self.kind in ("node", "journal"):
            return f"node{self.path.replace('/', '.')}"
        within = self.container if self.kind == "output" else self.path.replace("/", ".")
        return f"kube.{self.namespace}.{self.pod}.{within}"

    def to_json(self) -> dict[str, Any]:
        """Return it as :func:`from_json` reads it."""
        return asdict(self)


def from_json(value: Mapping[str, Any]) -> SourceFacts:
    """Return the source that :meth:`SourceFacts.to_json` wrote. Raises KeyError, TypeError for anything else."""
    reading = value["reading"]
    made = Reading(**{**reading, "sinks": tuple(reading["sinks"]), "without": tuple(reading["without"])})
    return SourceFacts(**{**value, "reading": made})
