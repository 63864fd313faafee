"""How a daemon takes a node over from the one that runs there, so that nothing is refused in between.

Theory of operation
-------------------

The daemon that runs listens on ``hand-over.sock`` in its runtime directory; both ends are one user's, root
(SO_PEERCRED), packets are messages (``messages.py``) as between a daemon's own processes. A
newcomer that finds the folders' locks taken calls there::

    newcomer                                   the daemon that runs
       │ Hello(versions, release) ───────────────▶ │
       │ ◀──────── Welcome(version, release, locks)│  both hold the folders' locks from here on
       │  its control prepares: certificates'      │  works as ever, enrols, beats
       │  source, first listing, programs          │
       │  compiled and in the kernel               │
       │ TakeOver ────────────────────────────────▶│  its control resigns: writes no map, pin or mark any
       │ ◀──────────────── Handed(files)… HandedAll│  more; workers serve on, the heartbeat goes on
       │  programs attached, pods enrolled with    │
       │  the same listeners, workers, ports       │
       │ TookOver, after its own first beat ──────▶│  no more beats, locks, ports: its workers take nothing
       │                                           │  more and drain, told of every change of policy by
       │                                           │  their own control
       │ Farewell, if it ends without a successor ▶│  drains as a daemon that is stopped; one that was not
       │                                           │  told to end has the node again: it calls, as a newcomer,
       │ ◀───────────────────────── Hello, TakeOver│  the one that took over, which waits for that

Nobody guesses by time who is dead: Welcome brings a pidfd, and the end of the connection is the
death of the newcomer. One that is hung up on while the other lives ends itself: the other goes on.
Who dies when, and what is then:

    newcomer, before TakeOver      nothing has changed
    newcomer, before TookOver      the daemon's control is succeeded by one that takes the node back, as
                                   after any death of control; workers and heartbeat never stopped
    newcomer, after TookOver       as any daemon's death: protected pods are refused until it is started
                                   again; the one before it drains on. On a cluster that one was not told
                                   to end yet, perhaps, as the newcomer's pod is not ready: drained, it has
                                   the node again as soon as nobody has the locks, and after 10 s of that it
                                   drains no longer than in a stop
    the daemon, before HandedAll   the newcomer has the locks, and what was handed; it starts as after a
                                   death, and beats when it is up
    the daemon, after that         its connections are lost; the newcomer has everything
    its control, while it resigns  it is not started again: nobody writes, which is what was asked for
    its control, while it drains   its workers would hear of no policy any more: they end as in a stop
    the newcomer is stopped        it has taken nothing over, and ends; or it has, and is the daemon. As long
                                   as the one before it lives it is that one's again (`rollout undo`: the old
                                   pod is not told to end): Farewell, and it serves on until that one has
                                   taken the node over, or is dead
    third daemons                  are refused while one takes over: the locks are held by both
    the daemon is told to end      it does, unless one that takes over has called, or its own control knows
                                   that one is coming (Successor: its pod is there, kube/successor.py);
                                   it goes on then until that one has the node, or comes no more

What the workers of a daemon count that drains, it tells whoever has the node: ``control/late_counts.py``.

Versions: Hello, Welcome and Unwelcome never change; the rest is of the version that Welcome names,
the highest that both speak. Keys that a newcomer does not know it closes. A daemon from before
there was a hand-over has no such socket: it is ended first, as ever.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from nodeagent import __version__
from nodeagent.channel import Outbox, Packet, close_all, decode, receive
from nodeagent.errors import ControlError, shown
from nodeagent.folder_lock import FolderLock
from nodeagent.local_listener import LocalListener, calling_uid
from nodeagent.messages import (
    FROM_PREDECESSOR,
    FROM_SUCCESSOR,
    Farewell,
    FromPredecessor,
    FromSuccessor,
    Handed,
    HandedAll,
    Hello,
    TakeOver,
    TookOver,
    Unwelcome,
    Welcome,
)
from nodeagent.wire import FileDescriptor, MessageError, encode

VERSIONS: Final = (1,)
"""Of the protocol after Welcome."""
SOCKET: Final = "hand-over.sock"
COUNTS_SOCKET: Final = "late-counts.sock"
"""Where daemons that drain tell what they count (``control/late_counts.py``)."""
ANSWER_SECONDS: Final = 10.0
"""A supervisor waits for nobody, and answers within this time on the busiest machine."""
ENDING_SECONDS: Final = 60.0
"""So long a daemon that says that it ends is waited for."""
HANDED_AT_ONCE: Final = 100
"""Files in a message: with the longest keys it fits a packet."""
GONE_SECONDS: Final = 2.0
"""Within this time of its socket's end a daemon has given its locks up."""
KEY: Final = re.compile(
    r".{1,1024}/(netns|certificate)|[^/]{1,253}/(outbound|inbound)/[46]/\d{1,3}|ports/[a-z]{1,16}/[0-9.:]{2,40}"
)
"""What is handed over in version 1: ``messages.Keep``, ``Resigned.ports``."""
PORTS: Final = "ports/"
"""How the keys of the ports' listeners begin."""
log = logging.getLogger("nodeagent.supervisor")


class EndingError(ControlError):
    """The daemon that runs is about to end by itself: within so many *seconds*, or it does not."""

    def __init__(self, words: str, seconds: float) -> None:
        super().__init__(words)
        self.seconds = seconds


class Predecessor:
    """The daemon that runs, as a newcomer sees it that was welcome."""

    def __init__(self, end: socket.socket, welcome: Welcome) -> None:
        """*end*, non-blocking, is its own from now on, and so are the descriptors of *welcome*."""
        self.release = welcome.release
        self.locks = dict(welcome.locks)
        self.files: dict[str, FileDescriptor] = {}
        """What it has handed over so far; the taker's."""
        self.taking = False
        """It was asked for everything."""
        self.taken = False
        """It has handed everything."""
        self.hung_up = False
        self.dead = False
        self._received = 0
        self._process = welcome.process
        self._end = end
        self._outbox: Outbox[FromSuccessor] = Outbox(end)

    @classmethod
    def meet(cls, folder: Path) -> Predecessor:
        """Call the daemon of the runtime directory *folder*.

        Raises ControlError, in words that follow a colon: there is nobody, or it does not take this
        one. EndingError: it ends by itself.
        """
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            end.settimeout(ANSWER_SECONDS)
            welcome = _introduced(end, folder / SOCKET)
        except BaseException:
            end.close()
            raise
        end.setblocking(False)
        return cls(end, welcome)

    def take_over(self) -> None:
        """Ask for everything."""
        self.taking = True
        self._send(TakeOver())

    def took_over(self) -> None:
        """Say that this daemon's heartbeat goes on."""
        self._send(TookOver())

    def farewell(self) -> None:
        """Say that this daemon ends for good."""
        self._send(Farewell())

    def hang_up(self) -> None:
        """Hear and say nothing any more; its death is seen. Idempotent."""
        self.hung_up = True
        self._outbox.close()
        self._end.close()

    def waits_for(self) -> dict[int, int]:
        """Return the descriptors to poll, each with its events."""
        if self.dead:
            return {}
        if self.hung_up:
            return {self._process: select.POLLIN}
        return {self._end.fileno(): select.POLLIN | (select.POLLOUT if self._outbox else 0)}

    def handle(self, descriptor: int, event: int) -> None:
        """Take in that *event* came at *descriptor*, which was polled; the attributes tell what it was."""
        if self.hung_up or descriptor != self._end.fileno():
            self.look()
            return
        if event & select.POLLOUT:
            self._outbox.flush()
        if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._read()

    def look(self) -> None:
        """Look whether it is dead (pidfd_open(2): readable then)."""
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        if self.hung_up and not self.dead and poll.poll(0):
            self.dead = True
            os.close(self._process)

    def inherit(self) -> list[int]:
        """Return the descriptors that a child must not have."""
        process = [] if self.dead else [self._process]
        end = [] if self.hung_up else [self._end.detach()]
        return [*self.files.values(), *process, *end]

    def _read(self) -> None:
        try:
            packet = receive(self._end)
            if packet.payload:
                self._take(decode(packet, FROM_PREDECESSOR))
                return
        except (BlockingIOError, ConnectionResetError):
            return  # a reset is told once of an end that had not read everything; what it sent follows
        except MessageError as error:
            log.error("the daemon that is succeeded says what none says (%s)", error)
        except OSError:
            pass  # its end, told otherwise
        self.hang_up()
        self.look()

    def _send(self, message: FromSuccessor) -> None:
        if not self.hung_up:
            self._outbox.send(message)

    def _take(self, message: FromPredecessor) -> None:
        """Raises MessageError."""
        match message:
            case Handed():
                self._received += len(message.files)
                for key, descriptor in message.files.items():
                    if KEY.fullmatch(key) and key not in self.files:
                        self.files[key] = descriptor
                    else:
                        log.warning("%s, which is handed over, is nothing that this release knows", shown(key))
                        os.close(descriptor)
            case HandedAll():
                if message.files != self._received:
                    log.warning("%d files were to be handed over, %d came", message.files, self._received)
                self.taken = True
            case Welcome():
                close_all([message.process, *message.locks.values()])
                raise MessageError("Welcome: it comes once")
            case Unwelcome():
                raise MessageError("Unwelcome: it is too late for that")


def _introduced(end: socket.socket, path: Path) -> Welcome:
    """Raises ControlError, EndingError."""
    try:
        end.connect(str(path))
        if calling_uid(end) != os.getuid():
            raise ControlError(f"who listens at {path} is not this process's user")
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered, and hung up, already
            end.send(encode(Hello(VERSIONS, __version__))[0])
        answer = decode(_received(end), FROM_PREDECESSOR)
    except FileNotFoundError:
        raise ControlError("it is of a release that hands nothing over, or has not come up yet") from None
    except ConnectionRefusedError:
        raise EndingError(f"{path}: nobody listens there", GONE_SECONDS) from None
    except OSError as error:
        raise ControlError(f"{path}: it does not answer: {error.strerror or error}") from None
    except MessageError as error:
        raise ControlError(f"{path}: its answer is none: {error}") from None
    if isinstance(answer, Unwelcome):
        words = f"it does not hand over: {answer.why}"
        raise EndingError(words, ENDING_SECONDS) if answer.ending else ControlError(words)
    if not isinstance(answer, Welcome) or answer.version not in VERSIONS:
        raise ControlError(f"{path}: its answer is none: {shown(str(answer))}")
    return answer


def _received(end: socket.socket) -> Packet:
    """Return the first packet. Raises OSError."""
    try:
        return receive(end)
    except ConnectionResetError:
        return receive(end)  # told once of an end that had not read everything; what it sent follows


Event = Literal["takes", "took", "farewell", "gone"]
"""What a successor did: it takes over from now on, has taken over, ends for good, is dead."""
Stage = Literal["met", "taking", "handed", "over"]


class HandOver:
    """The socket where a successor calls, and the one that did. Nothing here waits."""

    def __init__(self, folder: Path, locks: Mapping[str, FolderLock]) -> None:
        """*folder*: the runtime directory; *locks*: by the settings that name the folders."""
        self._path = folder / SOCKET
        self._locks = locks
        self._listener: LocalListener | None = None
        self._end: socket.socket | None = None
        self._outbox: Outbox[FromPredecessor] | None = None
        self.stage: Stage | None = None
        """None: no successor is there."""
        self.ending = ""
        """Why nobody may take over any more, in words."""

    @property
    def under_way(self) -> bool:
        """Say whether a successor has begun to take over, and is not done."""
        return self.stage in ("taking", "handed")

    @property
    def over(self) -> bool:
        """Say whether the node is another daemon's."""
        return self.stage == "over"

    @property
    def hears(self) -> bool:
        """Say whether who called, or took over, is connected."""
        return self._end is not None

    def open(self) -> None:
        """Listen, if nobody does, nor is about to: a daemon of an earlier release may remove its successor's socket for
        its own. Raises OSError: nothing can be handed over then.
        """
        if self._listener is not None and self.stage is None and not self._listener.is_there:
            self.leave()
        if self._listener is None:
            self._listener = LocalListener(self._path)

    def waits_for(self) -> dict[int, int]:
        """Return the descriptors to poll, each with its events."""
        found: dict[int, int] = {}
        if self._listener is not None:
            found[self._listener.fileno()] = select.POLLIN
        if self._end is not None:
            found[self._end.fileno()] = select.POLLIN | (select.POLLOUT if self._outbox else 0)
        return found

    def handle(self, descriptor: int, event: int) -> Event | None:
        """Take in that *event* came at *descriptor*, which was polled."""
        if self._listener is not None and descriptor == self._listener.fileno():
            self._accept(self._listener)
            return None
        if self._end is None or descriptor != self._end.fileno():
            return None
        if event & select.POLLOUT and self._outbox is not None:
            self._outbox.flush()
        if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return self._read(self._end)
        return None

    def hand(self, files: Mapping[str, FileDescriptor]) -> None:
        """Hand *files* over. Raises OSError where there is no room for the copies."""
        if self._outbox is None or self.stage != "taking":
            return
        items = list(files.items())
        for at in range(0, len(items), HANDED_AT_ONCE):
            self._outbox.send(Handed(dict(items[at : at + HANDED_AT_ONCE])))
        self._outbox.send(HandedAll(len(items)))
        self.stage = "handed"

    def close(self) -> None:
        """Nobody can call any more; who has taken over is still heard."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def leave(self) -> None:
        """As :meth:`close`, where another daemon listens in this one's place."""
        if self._listener is not None:
            self._listener.leave()
            self._listener = None

    def inherit(self) -> list[int]:
        """Return the descriptors that a child must not have."""
        return [each.detach() for each in (self._listener, self._end) if each is not None]

    def drop(self) -> None:
        """Have no more to do with the successor."""
        if not self.over:
            self.stage = None
        if self._end is not None and self._outbox is not None:
            self._outbox.close()
            self._end.close()
        self._end = None
        self._outbox = None

    def _accept(self, listener: LocalListener) -> None:
        end = listener.accept()
        if end is None:
            return
        why = self.ending
        if self.stage is not None:
            why = "another daemon is about to take over"
        if why:
            with suppress(OSError):
                end.send(encode(Unwelcome(why, ending=bool(self.ending)))[0])
            end.close()
            return
        self.drop()  # who called before and said nothing
        self._end = end
        self._outbox = Outbox(end)

    def _read(self, end: socket.socket) -> Event | None:
        try:
            packet = receive(end)
            if packet.payload:
                return self._take(decode(packet, FROM_SUCCESSOR))
        except BlockingIOError:
            return None
        except MessageError as error:
            log.error("who is about to take over says what none says (%s)", error)
        except OSError:
            pass  # its end, told otherwise
        return self._gone()

    def _gone(self) -> Event | None:
        before = self.stage
        self.drop()
        if before in ("taking", "handed"):
            return "gone"
        if before == "met":
            log.warning("the daemon that was to take over is gone; this one goes on")
        return None

    def _take(self, message: FromSuccessor) -> Event | None:
        """Raises MessageError for what comes at another time."""
        match message:
            case Hello() if self.stage is None:
                self._welcome(message)
                return None
            case TakeOver() if self.stage == "met":
                self.stage = "taking"
                return "takes"
            case TookOver() if self.stage == "handed":
                self.stage = "over"
                return "took"
            case Farewell() if self.stage == "over":
                return "farewell"
            case _:
                raise MessageError(f"{type(message).__name__}: it is not the time for that")

    def _welcome(self, hello: Hello) -> None:
        """Raises MessageError where there is no version that both speak."""
        versions = set(VERSIONS) & set(hello.versions)
        if self._outbox is None:
            return
        if not versions:
            spoken = ", ".join(map(str, VERSIONS))
            self._outbox.send(Unwelcome(f"it speaks version {spoken} of the hand-over", ending=False))
            raise MessageError(f"Hello: none of its versions {hello.versions} is spoken here ({spoken})")
        locks = {setting: FileDescriptor(lock.descriptor) for setting, lock in self._locks.items()}
        process = FileDescriptor(os.pidfd_open(os.getpid()))
        self._outbox.send(Welcome(max(versions), __version__, process, locks))
        os.close(process)
        self.stage = "met"
        log.info("a daemon of release %s is about to take over", shown(hello.release))
