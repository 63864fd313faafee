"""What the daemon's processes say to each other: a frozen dataclass a message, grouped by direction.

Each direction is a union of its messages, which a reader takes apart by ``match`` down to
``assert_never``, and a MessageDecoder made of that union, by which its channel reads (``wire.py``). A
message that holds a descriptor is the owner of it once it was received.

::

    supervisor ──FromSupervisor──▶ control ──ToWorker──▶ worker
       ▲   │   ◀──ToSupervisor────    ▲    ◀─FromWorker─
       │   │ FromPredecessor          └─ToCollector, FromCollector─▶ collector
       │   ▼
    another daemon's supervisor, which takes the node over (FromSuccessor)

Besides, a control whose node is another daemon's tells that one's control LateCounts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from nodeagent.vocabulary import Family, PodUid, SpiffeId
from nodeagent.wire import FileDescriptor, MessageDecoder, Unchecked

# -- the supervisor tells control --


@dataclass(frozen=True, slots=True)
class Kept:
    """An earlier control had the supervisor keep *files* (see :class:`Keep`)."""

    files: Mapping[str, FileDescriptor]


@dataclass(frozen=True, slots=True)
class Orphan:
    """The child *pid* of an earlier control lives; *end* is that control's end of its channel."""

    role: str
    pid: int
    end: FileDescriptor


@dataclass(frozen=True, slots=True)
class Begin:
    """Everything that an earlier control left was told: begin."""


@dataclass(frozen=True, slots=True)
class Forked:
    """The child that control asked for by *role* and *number* is the process *pid*."""

    role: str
    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The child *pid* is gone; *status* is its exit code, or a signal's number below zero."""

    role: str
    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class Beats:
    """Whether the heartbeat goes on: some worker's loop turned lately (*felt*), or none did."""

    felt: bool


@dataclass(frozen=True, slots=True)
class Stilled:
    """The heartbeat has ended, as control asked by :class:`Still`."""


@dataclass(frozen=True, slots=True)
class Resign:
    """Another daemon takes the node over: write nothing of it any more, neither maps, pins nor
    marks, for good; serve on, and say so by :class:`Resigned`.
    """


@dataclass(frozen=True, slots=True)
class Superseded:
    """The other daemon's heartbeat goes on: take no connection any more, and end with those there are."""


@dataclass(frozen=True, slots=True)
class Hasten:
    """The daemon that took over ends too: what is still open has as long as when a daemon stops."""


FromSupervisor: TypeAlias = Kept | Orphan | Begin | Forked | Exited | Beats | Stilled | Resign | Superseded | Hasten

# -- control tells the supervisor --


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork a child that does what *role* names; control knows it by *number* until it has a pid.

    *theirs* becomes the child's end of its channel; *controls*, the other end, is kept for a
    successor of this control.
    """

    role: str
    number: int
    theirs: FileDescriptor
    controls: FileDescriptor


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep *files* across a death of control, each in place of what had its key.

    Keys begin with their owner: ``uid/direction/family/slot`` is a listener of a pod, ``uid/netns``
    its network namespace, ``identity/certificate`` a certificate in a memory file.
    """

    files: Mapping[str, FileDescriptor]


@dataclass(frozen=True, slots=True)
class Drop:
    """Close what is kept of *owner*, a pod's uid or an identity, or under this very key."""

    owner: str


@dataclass(frozen=True, slots=True)
class BeginHeartbeat:
    """Begin the heartbeat: *timeout*, in seconds, is how old it may become in the map *heart*."""

    timeout: float
    heart: FileDescriptor


@dataclass(frozen=True, slots=True)
class Still:
    """End the heartbeat, and say so by :class:`Stilled`."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Send *signal* to the child *pid*; to nobody, if there is no such child any more."""

    pid: int
    signal: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """All is there that another daemon on the node may go on beside: this control can begin at once."""


@dataclass(frozen=True, slots=True)
class Resigned:
    """Nothing of the node is written by this control any more, as asked by :class:`Resign`.

    *ports*: the listeners of its own ports, for the daemon that takes over (``control/admin.py``).
    """

    ports: Mapping[str, FileDescriptor]


@dataclass(frozen=True, slots=True)
class Successor:
    """Whether another daemon is *coming* to the node, which has not called yet."""

    coming: bool


WORKER: Final = "worker"
"""The role of a proxy worker, in Fork."""
COLLECTOR: Final = "collector"
"""The role of the process that reads and delivers logs, in Fork."""
ToSupervisor: TypeAlias = Fork | Keep | Drop | BeginHeartbeat | Still | Signal | Prepared | Resigned | Successor

# -- a daemon tells the one whose node it takes over (hand_over.py) --


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message; no release may change it. *versions*: of this protocol that the newcomer
    speaks; *release*: its own, for the log.
    """

    versions: tuple[int, ...]
    release: str


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The newcomer can begin at once: resign, and hand everything over."""


@dataclass(frozen=True, slots=True)
class TookOver:
    """The newcomer carries the node's connections, and its heartbeat goes on: the node is its own."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """The newcomer was told to end, and nobody takes over from it."""


FromSuccessor: TypeAlias = Hello | TakeOver | TookOver | Farewell

# -- and hears from it --


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to :class:`Hello`; no release may change it. *version* is spoken from now on;
    *process*: a pidfd of who answers; *locks*: of the daemon's folders, by the settings that name
    them, which both hold from now on.
    """

    version: int
    release: str
    process: FileDescriptor
    locks: Mapping[str, FileDescriptor]


@dataclass(frozen=True, slots=True)
class Unwelcome:
    """The other answer; no release may change it. *why*, in words; *ending*: the daemon ends anyway."""

    why: str
    ending: bool


@dataclass(frozen=True, slots=True)
class Handed:
    """A part of what is handed over, by key as in :class:`Keep`."""

    files: Mapping[str, FileDescriptor]


@dataclass(frozen=True, slots=True)
class HandedAll:
    """That was all: so many *files*."""

    files: int


FromPredecessor: TypeAlias = Welcome | Unwelcome | Handed | HandedAll

# -- control of a daemon that drains tells the one that has the node (control/late_counts.py), and hears from it --


@dataclass(frozen=True, slots=True)
class LateCounts:
    """What was counted since the last one, *version* says how it is written (``late_reports.py``); answered by
    :class:`CountsTaken` of the same *number*. No release may change it.
    """

    version: int
    number: int
    report: Unchecked


@dataclass(frozen=True, slots=True)
class CountsTaken:
    """They are in the metrics of who answers. No release may change it."""

    number: int


# -- control tells a worker --


@dataclass(frozen=True, slots=True)
class StartWorker:
    """The first message: who the worker is, and what it rests on.

    *slot*: the worker's number in metrics; *config*: agent.yaml as JSON; *node_addresses*: from
    which the node's probes come; *supervisor*: the pid whose death is the worker's; *originals*
    and *announced*: the maps of original destinations and of announced connections.
    """

    slot: int
    config: Unchecked
    node_addresses: tuple[str, ...]
    supervisor: int
    originals: FileDescriptor
    announced: FileDescriptor


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """A part of a change of the snapshot, which brings it to *generation*; while there is *more*, nothing
    of the change is in force: half of it might let in whom the whole refuses.

    *upserts* are entries as ``mesh.entry_json.to_json`` makes them, *removals* keys of entries.
    """

    upserts: list[Unchecked]
    removals: tuple[str, ...]
    generation: int
    more: bool


@dataclass(frozen=True, slots=True)
class CertificateIssued:
    """An identity of this node has this certificate from now on (``Certificate.to_json``)."""

    certificate: Unchecked


@dataclass(frozen=True, slots=True)
class PodCaptured:
    """The pod's traffic is captured; its listeners follow. Told again when they were opened anew."""

    uid: PodUid
    cookie: int
    """Of its network namespace."""
    identity: SpiffeId


@dataclass(frozen=True, slots=True)
class Listen:
    """A listening socket inside a captured pod is this worker's to accept from."""

    uid: PodUid
    direction: Literal["outbound", "inbound"]
    family: Family
    listener: FileDescriptor


@dataclass(frozen=True, slots=True)
class PodReleased:
    """The pod's new connections are not captured any more."""

    uid: PodUid


@dataclass(frozen=True, slots=True)
class SocketsMade:
    """Sockets inside a pod, as a worker asked by :class:`NeedSockets`; none: they cannot be made."""

    uid: PodUid
    family: Family
    sockets: tuple[FileDescriptor, ...]


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """The node's own addresses have become *addresses*."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Succeeded:
    """Another control is at the other end: what its predecessor was asked for may be lost."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer by :class:`Pong`, after what has been counted was told."""

    number: int


@dataclass(frozen=True, slots=True)
class AskFlows:
    """Tell counts, then the live and recent connections by :class:`FlowRows`."""

    number: int


@dataclass(frozen=True, slots=True)
class AskMetrics:
    """Tell counts, then a :class:`FlowRows` without any: it is not asked who is connected."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """End what is open now as soon as it may; go on accepting; say so by :class:`Finished`."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Accept nothing more, and end when what is open has ended, at the latest after *seconds*."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NextOriginals:
    """A daemon that takes the node over has a map of *originals* of its own (of another size): what the
    map of before does not know is there. Until it serves itself, this daemon's workers do.
    """

    originals: FileDescriptor


AboutPod: TypeAlias = PodCaptured | Listen | PodReleased | SocketsMade
ToWorker: TypeAlias = (
    StartWorker
    | SnapshotPart
    | CertificateIssued
    | AboutPod
    | NodeAddresses
    | NextOriginals
    | Succeeded
    | Ping
    | AskFlows
    | AskMetrics
    | Finish
    | Drain
)

# -- a worker tells control --


@dataclass(frozen=True, slots=True)
class NeedSockets:
    """*count* sockets of *family* inside a pod are needed; answered by :class:`SocketsMade`."""

    uid: PodUid
    family: Family
    count: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to :class:`Ping` of the same *number*; so many *connections* are open."""

    number: int
    connections: int


@dataclass(frozen=True, slots=True)
class GenerationInForce:
    """The *generation* of the snapshot, and those before it, are in force, for open connections too."""

    generation: int


@dataclass(frozen=True, slots=True)
class Finished:
    """What was open when :class:`Finish` came has ended."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted since the last one (``WorkerMetrics.delta``)."""

    report: Unchecked


@dataclass(frozen=True, slots=True)
class FlowRows:
    """Connections as ``nodeagent flows`` shows them; the last part says that there is no *more*.

    The answer to AskFlows or AskMetrics of the same *number*.
    """

    number: int
    flows: list[Unchecked]
    more: bool


FromWorker: TypeAlias = NeedSockets | Pong | GenerationInForce | Finished | Counted | FlowRows
LARGEST_FROM_WORKER: Final = 1 << 20
"""Bytes of a message: workers cut what they tell to packets (``channel.MESSAGE_BYTES``), and one that
was taken over shall not fill control's memory.
"""

# -- control tells the collector of logs --


@dataclass(frozen=True, slots=True)
class StartCollector:
    """The first message. *settings*: section ``logs`` of agent.yaml as JSON; *node*: its name;
    *supervisor*: the pid whose death is the collector's.
    """

    settings: Unchecked
    node: str
    supervisor: int


@dataclass(frozen=True, slots=True)
class LogSourceTold:
    """Where records come from, by *key*, as it is from now on (``SourceFacts.to_json``)."""

    key: str
    source: Unchecked


@dataclass(frozen=True, slots=True)
class LogFileOpened:
    """A file of the source *key*: *name* is what it is called now. Its descriptor is for reading. Up to
    *start* another program has delivered it, which counts where the collector knows nothing of it.
    """

    key: str
    name: str
    device: int
    inode: int
    start: int
    file: FileDescriptor


@dataclass(frozen=True, slots=True)
class LogFileRenamed:
    """A file that was told is called *name* now; empty: it has no name any more that is seen."""

    device: int
    inode: int
    name: str


@dataclass(frozen=True, slots=True)
class LogRoomWanted:
    """So many *files* of the pod *uid* (empty: the node) wait until others of it are closed."""

    uid: PodUid
    files: int


@dataclass(frozen=True, slots=True)
class LogSourceGone:
    """No more files of the source *key* will come. What it has open is read to the end, as its pod is gone; or, where
    the source is *left_out* of a pod that lives, dropped from now on.
    """

    key: str
    left_out: bool


@dataclass(frozen=True, slots=True)
class AllLogsTold:
    """Another control is at the other end, and has told all that it knows: sources that are not among *keys*
    are gone, and read to their ends. Of what is left out it has told by :class:`LogSourceGone`.
    """

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AskCollector:
    """Tell counts, then the files and what is wrong with them by :class:`CollectorRows`."""

    number: int


@dataclass(frozen=True, slots=True)
class FinishLogs:
    """Read no more, deliver what was read within *seconds*, save the positions, and end."""

    seconds: float


ToCollector: TypeAlias = (
    StartCollector
    | LogSourceTold
    | LogFileOpened
    | LogFileRenamed
    | LogRoomWanted
    | LogSourceGone
    | AllLogsTold
    | AskCollector
    | FinishLogs
)

# -- the collector tells control --


@dataclass(frozen=True, slots=True)
class Collecting:
    """It has the folder of positions for itself, and reads from now on."""


@dataclass(frozen=True, slots=True)
class LogFileClosed:
    """A file has been read to its end and has no name any more, or cannot be read: it may be told anew."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class LogFilePutAside:
    """A file that nobody seems to write to was read, is settled, and was closed: it is told anew once its size, or when
    it was *modified* (nanoseconds), is another, and has no name once it is gone (:class:`LogFileRenamed`).
    """

    device: int
    inode: int
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class CollectorCounted:
    """What was counted since the last one, or, if it is the *whole*, since the collector's start: the first one,
    and the first one after :class:`AllLogsTold`.
    """

    report: Unchecked
    """As a worker's."""
    whole: bool


@dataclass(frozen=True, slots=True)
class CollectorRows:
    """The answer to :class:`AskCollector` of the same *number*, in parts; the last says that there is no *more*."""

    number: int
    files: list[Unchecked]
    sinks: list[Unchecked]
    warnings: tuple[str, ...]
    more: bool


FromCollector: TypeAlias = Collecting | LogFileClosed | LogFilePutAside | CollectorCounted | CollectorRows

LARGEST_OF_DAEMONS: Final = 1 << 16
"""Bytes of a message between two daemons: DESCRIPTORS keys, each below 300 bytes."""

FROM_SUPERVISOR: Final[MessageDecoder[FromSupervisor]] = MessageDecoder(get_args(FromSupervisor))
TO_SUPERVISOR: Final[MessageDecoder[ToSupervisor]] = MessageDecoder(get_args(ToSupervisor))
TO_WORKER: Final[MessageDecoder[ToWorker]] = MessageDecoder(get_args(ToWorker))
FROM_WORKER: Final[MessageDecoder[FromWorker]] = MessageDecoder(get_args(FromWorker), LARGEST_FROM_WORKER)
TO_COLLECTOR: Final[MessageDecoder[ToCollector]] = MessageDecoder(get_args(ToCollector))
FROM_COLLECTOR: Final[MessageDecoder[FromCollector]] = MessageDecoder(get_args(FromCollector), LARGEST_FROM_WORKER)
FROM_SUCCESSOR: Final[MessageDecoder[FromSuccessor]] = MessageDecoder(get_args(FromSuccessor), LARGEST_OF_DAEMONS)
FROM_PREDECESSOR: Final[MessageDecoder[FromPredecessor]] = MessageDecoder(get_args(FromPredecessor), LARGEST_OF_DAEMONS)
FROM_DRAINING: Final[MessageDecoder[LateCounts]] = MessageDecoder((LateCounts,), LARGEST_FROM_WORKER)
TO_DRAINING: Final[MessageDecoder[CountsTaken]] = MessageDecoder((CountsTaken,), LARGEST_OF_DAEMONS)
