"""The first process: forks control and, by the names of their roles, the processes that control
asks for; keeps what must outlive control, and beats for the data plane.

It stays small on purpose. It is forked from before any thread or event loop exists, so that a child
starts clean and shares the imported code's memory; and it parses nothing from outside. Nothing that
pods or peers can load runs here.

The heartbeat says that the data plane works: some worker's loop turned lately. Control may be busy,
stopped or dead meanwhile; so the supervisor never waits for it: what it is to be told is queued,
and a successor that must wait a moment is an alarm in the one poll().

How a node passes from one daemon to another, and who dies when: hand_over.py. Here is what both
supervisors do about it. One that has drained, and was not told to end, makes way for another one
in the same process when the node is nobody's, or is given back.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, assert_never

from nodeagent.channel import DESCRIPTORS, Packet, close_all, decode
from nodeagent.children import ChildProcesses
from nodeagent.control_process import ControlProcess
from nodeagent.errors import shown
from nodeagent.folder_lock import FolderLock, is_free
from nodeagent.forking import CONTROL, Role, fork, reaped
from nodeagent.hand_over import PORTS, Event, HandOver, Predecessor
from nodeagent.heart import Heart
from nodeagent.log_lines import say
from nodeagent.memory import settle
from nodeagent.messages import (
    TO_SUPERVISOR,
    Beats,
    Begin,
    BeginHeartbeat,
    Drop,
    Fork,
    FromSupervisor,
    Hasten,
    Keep,
    Kept,
    Prepared,
    Resign,
    Resigned,
    Signal,
    Still,
    Stilled,
    Successor,
    Superseded,
    ToSupervisor,
)
from nodeagent.pulse import Pulses
from nodeagent.service_manager import ServiceManager
from nodeagent.signals import Signals
from nodeagent.wire import FileDescriptor, MessageError

RESPAWN_SECONDS: Final = 1.0
"""A control that died within this time is replaced no sooner: a daemon whose control dies at every
start does not spin.
"""
SILENT_SECONDS: Final = 10.0
"""While no worker's loop has turned for this long, the data plane does not work."""
PATIENCE_SECONDS: Final = 10.0
"""What has not ended this long after it should have is killed."""
WATCH_SECONDS: Final = 2.0
"""Between two looks at a control that drains: no beat reminds of it."""
HUNG_UP_SECONDS: Final = 2.0
"""Within this time of the end of its connection a daemon that died is seen to be dead."""
RESIGN_SECONDS: Final = 15.0
"""A control that has not resigned in this time is killed: who is dead writes nothing either. Until then
the daemon serves on; afterwards nobody makes sockets for its workers.
"""
TAKE_OVER_SECONDS: Final = 120.0
"""A daemon that takes over and does not beat after this time gives up, and its predecessor goes on;
one that is told to end waits as long for a successor that has called.
"""
COMING_SECONDS: Final = 3600.0
"""So long one that is told to end waits for a successor that has not called yet: its image may have to
be fetched first. Whoever runs the daemon bounds it too (``terminationGracePeriodSeconds``).
"""
VACANT_SECONDS: Final = 10.0
"""So long no daemon has the node, before one that drains cuts what is open to have it again: the one that took
over may have died, and be about to be started again.
"""
VACANCY_SECONDS: Final = 0.5
"""Between two looks, of one that has drained, whether a daemon has the node."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
log = logging.getLogger("nodeagent.supervisor")


@dataclass(frozen=True, slots=True)
class Estate:
    """What daemons of this node have from one another."""

    locks: Mapping[str, FolderLock] = field(default_factory=dict)
    """Of the daemon's folders, by setting; no child may have them."""
    predecessor: Predecessor | None = None
    """The daemon that runs, of which this one takes the node over."""
    hand_over: HandOver | None = None
    """Where the next one calls; None: none can."""
    manager: ServiceManager = field(default_factory=ServiceManager)
    """Who is told that the daemon works."""
    regain: Callable[[bool], Estate | None] | None = None
    """How a daemon that has given the node up, and drained, has it again. Returns the new estate of a node that no
    daemon has, or, where the argument says that it is given back, of the one that has it; None: it cannot be had
    now. No such way: who has drained ends.
    """


class Supervisor:
    """Children by pid, and descriptors by key: a pod's listeners (``uid/direction/family/slot``)
    and network namespace (``uid/netns``), and an identity's certificate in memory
    (``identity/certificate``), which is never read here.
    """

    def __init__(self, roles: Mapping[str, Role], estate: Estate, stop_seconds: float, signals: Signals) -> None:
        """*roles*: by name, CONTROL among them. *stop_seconds*: how long a stop takes."""
        self._told = False
        self._regain = estate.regain
        self._returned = False
        """The daemon that took over gives the node back, as long as it is there."""
        self._giving_back = False
        """This one does so to the daemon before it."""
        self._vacant_since = 0.0
        """By the monotonic clock; 0: another daemon has the node; infinity: what drains was hastened for it."""
        self.regained: Estate | None = None
        """The node is this process's again, with another supervisor."""
        self._roles = roles
        self._locks = estate.locks
        self._predecessor = estate.predecessor
        self._hand_over = estate.hand_over
        self._manager = estate.manager
        self._withheld = estate.predecessor is not None
        """Control is not told to begin: another daemon does its work."""
        self._alone = estate.predecessor is None
        """No other daemon beats on this node."""
        self._watch_at = 0.0
        self._give_up_at = 0.0
        self._hung_up_at = 0.0
        self._resign_at = 0.0
        self._stop_asked_at = 0.0
        """To be done when nobody takes over."""
        self._coming = False
        """Another daemon is on its way to the node."""
        self._patience = stop_seconds + PATIENCE_SECONDS
        self._start_at = 0.0
        self._kept: dict[str, FileDescriptor] = {}
        pulses = Pulses()
        self._control = ControlProcess(roles[CONTROL].main, pulses.claim())
        self._children = ChildProcesses(roles, pulses, self._fork)
        self._heart = Heart()
        self._stopping = False
        self._kill_at = 0.0
        self._status = 0
        self._signals = signals

    def run(self) -> int:
        """Run until every child is gone, and this daemon was told to stop or has the node again (``regained``);
        return control's exit status.
        """
        self._start_control()
        while self._control or self._children or self._start_at:
            self._wait()
            self._heed_signals()
            self._bury(reaped())
            self._keep_time()
        if self._hand_over is not None:
            self._hand_over.close()
        if self._regain is not None and self._hand_over is not None and self._superseded:
            self._last(self._hand_over, self._regain)
        return self._status

    def _last(self, hand_over: HandOver, regain: Callable[[bool], Estate | None]) -> None:
        """Wait to be told to end: a kubelet starts a container again that ends by itself, and that would take the
        node from the successor, whose pod is not ready yet. When no daemon has the node any more, or the one that
        has it gives it back, have it again.
        """
        while not self._told:
            self.regained = regain(self._returned and hand_over.hears)
            if self.regained is not None:
                break
            poll = select.poll()
            poll.register(self._signals.descriptor, select.POLLIN)
            for descriptor, events in hand_over.waits_for().items():
                poll.register(descriptor, events)
            for descriptor, event in poll.poll(VACANCY_SECONDS * 1000):
                if descriptor == self._signals.descriptor:
                    self._signals.drain()
                elif hand_over.handle(descriptor, event) == "farewell":
                    self._returned = True
            self._heed_signals()
        hand_over.drop()

    def _wait(self) -> None:
        """Wait for a child, a signal, control or an alarm, whichever comes first. poll() and not
        select(): descriptors are many.
        """
        poll = select.poll()
        poll.register(self._signals.descriptor, select.POLLIN)
        control = self._control.waits_for()
        for descriptor, events in (control | self._others()).items():
            poll.register(descriptor, events)
        alarms = [alarm for alarm in self._alarms() if alarm]
        wait = max(0.0, min(alarms) - time.monotonic()) * 1000 + 1 if alarms else None
        for descriptor, event in poll.poll(wait):
            if descriptor == self._signals.descriptor:
                self._signals.drain()
                continue
            if descriptor not in control:
                self._hear_another(descriptor, event)
                continue
            if event & select.POLLOUT:
                self._control.flush()
            if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._read_control()

    def _alarms(self) -> tuple[float, ...]:
        return (
            self._start_at,
            self._children.fork_at,
            self._heart.next_beat,
            self._kill_at,
            self._give_up_at,
            self._hung_up_at,
            self._resign_at,
            self._stop_asked_at,
            self._watch_at,
        )

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._start_at and now >= self._start_at:
            self._start_control()
        if self._heart.begun and now >= self._heart.next_beat:
            self._beat(now)
            self._look_after_control()
        if self._watch_at and now >= self._watch_at:
            self._watch_at = now + WATCH_SECONDS
            self._look_after_control()
            self._look_after_node(now)
        self._keep_hand_over_in_time(now)
        if self._children.fork_at and now >= self._children.fork_at:
            self._fork_children()
        if self._kill_at and now >= self._kill_at:
            self._kill_at = 0.0
            _say(f"what has not ended {self._patience:g} s after the daemon was told to stop is killed")
            self._children.kill()
            self._control.kill()

    # -- the heartbeat --

    def _beat(self, now: float) -> None:
        felt = self._children.felt(SILENT_SECONDS)
        try:
            changed = self._heart.beat(now, felt)
        except OSError as error:
            _say(f"the heartbeat cannot be written: {error.strerror}")
            return
        if changed:
            self._tell(Beats(felt))
        if felt and not self._alone:
            self._took_over()
        elif self._alone:
            self._open_hand_over()
        if felt:
            self._manager.beaten(now)

    # -- children --

    def _start_control(self) -> None:
        self._start_at = 0.0
        self._children.try_control()
        try:
            self._control.start(self._fork)
        except OSError as error:
            _say(f"control cannot be forked: {error.strerror}")
            self._start_at = self._control.started + RESPAWN_SECONDS
            return
        self._heart.told = False
        if not self._withheld:
            self._tell_what_is_left()

    def _tell_what_is_left(self) -> None:
        """Tell control what was before it, and to begin."""
        files = list(self._kept.items())
        for at in range(0, len(files), DESCRIPTORS):
            self._tell(Kept(dict(files[at : at + DESCRIPTORS])))
        for orphan in self._children.orphans():
            self._tell(orphan)
        self._tell(Begin())

    def _bury(self, dead: dict[int, int]) -> None:
        """Take in who is *dead*, with what status: control last, for no pid that is free again may be signalled."""
        for pid in dead.keys() & self._children.pids:
            self._tell(self._children.died(pid, dead[pid]))
        code = self._control.ended(dead)
        if code is not None:
            self._control_died(code)

    def _control_died(self, code: int) -> None:
        while self._read_control():
            """Its last words count."""
        self._control.close()
        self._children.forget_asked()
        if self._hand_over is not None and self._hand_over.under_way:
            _say(f"control died (status {code}) while another daemon takes over; who is dead has resigned")
            self._hand_everything({})
        elif self._stopping or code == 0 or self._superseded:
            self._status = code
            self._end_data_plane()
        elif not self._heart.begun:
            self._status = code  # none ever came up: say so and stop, the node's supervisor will try again
            self._end_data_plane()
        else:
            _say(f"control died (status {code}); it is started again, workers go on")
            self._children.end_tried()
            self._start_at = max(time.monotonic(), self._control.started + RESPAWN_SECONDS)

    def _look_after_control(self) -> None:
        if not self._stopping:
            self._control.look_after()

    def _stop(self) -> None:
        """Nothing is started any more, and what does not end in time is killed."""
        if not self._stopping:
            self._stopping = True
            if not self._superseded:
                self._manager.stopping()
            self._kill_at = time.monotonic() + self._patience
        self._start_at = 0.0
        self._children.fork_at = 0.0

    def _end_data_plane(self) -> None:
        self._stop()
        self._end_heart()
        self._children.end()

    def _fork_children(self) -> None:
        """Fork the children that control asked for; what the machine has no room for is tried again."""
        for forked in self._children.forked():
            self._tell(forked)

    def _fork(self, child: Callable[[], None], keep: set[int]) -> int:
        return fork(child, partial(self._close_inherited, keep), _SIGNALS)

    def _close_inherited(self, keep: set[int]) -> None:
        """Close what is the supervisor's alone."""
        heart = [self._heart.descriptor] if self._heart.begun else []
        waiting = [self._manager.waiting] if self._manager.waiting >= 0 else []
        for descriptor in (
            *self._signals.inherit(),
            *self._control.inherit(),
            *(lock.descriptor for lock in self._locks.values() if lock.descriptor >= 0),
            *(self._hand_over.inherit() if self._hand_over is not None else ()),
            *(self._predecessor.inherit() if self._predecessor is not None else ()),
            *self._kept.values(),
            *self._children.inherit(),
            *heart,
            *waiting,
        ):
            if descriptor not in keep:
                os.close(descriptor)
        self._kept.clear()

    # -- control's messages --

    def _read_control(self) -> bool:
        """Obey a message; return whether there may be more."""
        packet = self._control.read()
        if packet is None:
            return False
        self._take(packet)
        return True

    def _take(self, packet: Packet) -> None:
        """Obey what *packet* says."""
        try:
            self._obey(decode(packet, TO_SUPERVISOR))
        except MessageError as error:
            self._misunderstand(error)
        except OSError as error:
            _say(f"a message of control's cannot be obeyed: {error!r:.200}")

    def _misunderstand(self, error: MessageError) -> None:
        """It is not known what control believes to be so, a slot filled or a heartbeat begun: it is
        killed, and its successor is told everything.
        """
        _say(f"control says what no control says ({error}) and is killed")
        self._control.kill()

    def _obey(self, message: ToSupervisor) -> None:
        """Carry *message* out. Raises MessageError for a role that is not known; OSError."""
        match message:
            case Fork():
                self._take_fork(message)
            case Keep():
                self._keep(message.files)
            case Drop():
                owner = message.owner
                for key in [key for key in self._kept if key == owner or key.startswith(f"{owner}/")]:
                    self._drop(key)
            case BeginHeartbeat():
                self._heart.begin(message.heart, message.timeout)
                self._children.trust_control()
                if self._alone:
                    self._open_hand_over()
            case Still():
                self._end_heart()
                self._tell(Stilled())
            case Prepared():
                self._take_over()
            case Resigned():
                self._hand_everything(message.ports)
            case Successor():
                self._expect(message.coming)
            case Signal():
                self._children.signal(message.pid, message.signal)
            case _:
                assert_never(message)

    def _take_fork(self, asked: Fork) -> None:
        """Raises MessageError."""
        self._children.ask(asked)
        if self._control:
            self._fork_children()
        else:
            self._children.forget_asked()

    def _keep(self, files: Mapping[str, FileDescriptor]) -> None:
        for key, descriptor in files.items():
            self._drop(key)
            self._kept[key] = descriptor

    def _drop(self, key: str) -> None:
        descriptor = self._kept.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)

    def _tell(self, message: FromSupervisor) -> None:
        self._control.tell(message)

    def _heed_signals(self) -> None:
        signals = self._signals.take()
        if signals & {signal.SIGTERM, signal.SIGINT}:
            self._told_to_end()
        if signal.SIGINT in signals and self._superseded:
            self._hasten()
        if signal.SIGHUP in signals:
            self._control.signal(signal.SIGHUP)

    def _told_to_end(self) -> None:
        """End, unless the node is another daemon's, or about to be."""
        self._told = True
        if self._superseded:
            return  # it drains, and ends by itself
        if self._called:
            self._await("the one that is about to take over", TAKE_OVER_SECONDS)
        elif self._awaits_successor():
            self._await("the one that is coming to the node", COMING_SECONDS)
        elif self._gives_back():
            self._await("the one before it, which may take the node back", TAKE_OVER_SECONDS)
        else:
            self._end_all()

    def _await(self, whom: str, seconds: float) -> None:
        """Go on for so many *seconds* at most, until *whom* has the node."""
        if not self._stop_asked_at:
            _say(f"this daemon is to end; it waits for {whom}", logging.INFO)
            self._stop_asked_at = time.monotonic() + seconds

    @property
    def _called(self) -> bool:
        """Say whether another daemon has called to take over."""
        return self._hand_over is not None and self._hand_over.stage is not None

    @property
    def _can_hand_over(self) -> bool:
        """Say whether the node is this daemon's, to give away."""
        return self._alone and self._heart.begun and self._hand_over is not None

    def _awaits_successor(self) -> bool:
        """Say whether another one is coming that can take the node over."""
        return self._coming and self._can_hand_over

    def _gives_back(self) -> bool:
        """Give the node back to the daemon from which this one took it over, where that one goes on: it comes for it
        unless it was told to end, too. Return whether that may be.
        """
        before = self._predecessor
        if not self._giving_back and before is not None and not before.hung_up:
            self._giving_back = self._regain is not None and self._can_hand_over
            if self._giving_back:
                before.farewell()
        return self._giving_back

    def _expect(self, coming: bool) -> None:
        """Take in whether another daemon is coming: who waits for none any more ends now."""
        self._coming = coming
        if not coming:
            self._end_if_nobody_comes("the daemon that was coming does not come")

    def _end_if_nobody_comes(self, why: str) -> None:
        if self._stop_asked_at and not (self._coming or self._called or self._giving_back):
            _say(f"{why}; this one ends", logging.INFO)
            self._stop_asked_at = 0.0
            self._told_to_end()

    def _hasten(self) -> None:
        """What drains, here and before this daemon, has as long as in a stop."""
        self._tell(Hasten())
        if self._predecessor is not None:
            self._predecessor.farewell()

    def _end_all(self) -> None:
        self._stop()
        if self._predecessor is not None and self._alone:
            self._predecessor.farewell()
        if self._hand_over is not None:
            self._hand_over.ending = "it is about to end"
        if self._control and self._alone:
            self._control.signal(signal.SIGTERM)
            return
        self._control.kill()  # it has taken nothing over: there is nothing to stop in order
        self._end_data_plane()

    # -- from daemon to daemon (hand_over.py) --

    @property
    def _superseded(self) -> bool:
        return self._hand_over is not None and self._hand_over.over

    def _others(self) -> dict[int, int]:
        """Return the descriptors of other daemons, each with the events to poll for."""
        found = self._hand_over.waits_for() if self._hand_over is not None else {}
        return found | (self._predecessor.waits_for() if self._predecessor is not None else {})

    def _hear_another(self, descriptor: int, event: int) -> None:
        if self._predecessor is not None and descriptor in self._predecessor.waits_for():
            self._predecessor.handle(descriptor, event)
            self._hear_predecessor(self._predecessor)
        elif self._hand_over is not None:
            self._hear_successor(self._hand_over, self._hand_over.handle(descriptor, event))

    def _keep_hand_over_in_time(self, now: float) -> None:
        if self._give_up_at and now >= self._give_up_at:
            self._give_up_at = 0.0
            _say(f"this daemon does not work {TAKE_OVER_SECONDS:g} s after it took over; its predecessor goes on")
            self._status = 1
            self._end_all()
        if self._hung_up_at and now >= self._hung_up_at:
            self._hung_up_at = 0.0
            _say("the daemon that runs has hung up, and goes on; this one ends")
            self._status = 1
            self._end_all()
        if self._resign_at and now >= self._resign_at:
            self._resign_at = 0.0
            _say(f"control has not resigned within {RESIGN_SECONDS:g} s and is killed")
            self._control.kill()
        if self._stop_asked_at and now >= self._stop_asked_at:
            self._stop_asked_at = 0.0
            _say("nobody has taken over; this daemon ends")
            if self._hand_over is not None and self._hand_over.stage is not None:
                self._alone = False  # it may come yet: the heartbeat's map is its own then
                self._hand_over.drop()
            self._end_all()

    # the newcomer's part

    def _take_over(self) -> None:
        """Control can begin at once: have everything handed over that it needs."""
        predecessor = self._predecessor
        if predecessor is None or not self._withheld or predecessor.taking:
            return
        self._give_up_at = time.monotonic() + TAKE_OVER_SECONDS
        predecessor.take_over()
        self._hear_predecessor(predecessor)

    def _hear_predecessor(self, predecessor: Predecessor) -> None:
        if predecessor.dead and not self._alone:
            _say("the daemon that ran before is dead; this one goes on alone")
            self._be_alone()
        elif predecessor.hung_up and not self._alone and not self._hung_up_at:
            self._hung_up_at = time.monotonic() + HUNG_UP_SECONDS  # its end is told before its death is
        if predecessor.dead and self._giving_back:
            self._giving_back = False
            self._end_if_nobody_comes("the daemon before has ended and takes nothing back")
        if self._withheld and predecessor.taking and (predecessor.taken or predecessor.dead):
            self._inherit(predecessor)

    def _inherit(self, predecessor: Predecessor) -> None:
        """Give control what was handed over, and let it begin."""
        self._withheld = False
        ports = {key: file for key, file in predecessor.files.items() if key.startswith(PORTS)}
        self._kept |= {key: file for key, file in predecessor.files.items() if key not in ports}
        predecessor.files.clear()
        self._tell(Kept(ports))
        close_all(list(ports.values()))
        self._tell_what_is_left()

    def _took_over(self) -> None:
        """This daemon beats: its predecessor needs to beat no more."""
        if self._predecessor is not None:
            self._predecessor.took_over()
            _say(f"this daemon has taken over from one of release {shown(self._predecessor.release)}", logging.INFO)
        self._be_alone()

    def _be_alone(self) -> None:
        """The node is this daemon's."""
        self._alone = True
        self._give_up_at = 0.0
        self._hung_up_at = 0.0
        if self._heart.begun:
            self._open_hand_over()

    def _open_hand_over(self) -> None:
        if self._hand_over is None:
            return
        try:
            self._hand_over.open()
        except OSError as error:
            _say(f"no other daemon can take over from this one: {error}")

    # the part of the daemon that runs

    def _hear_successor(self, hand_over: HandOver, event: Event | None) -> None:
        match event:
            case "takes":
                self._resign_at = time.monotonic() + RESIGN_SECONDS
                self._start_at = 0.0
                if self._control:
                    self._tell(Resign())
                else:
                    self._hand_everything({})
            case "took":
                self._step_down(hand_over)
            case "farewell":
                self._returned = True
                _say("the daemon that took over ends; what is open here has as long as in a stop", logging.INFO)
                self._hasten()
            case "gone":
                self._take_back()

    def _hand_everything(self, ports: Mapping[str, FileDescriptor]) -> None:
        """Nobody here writes anything of the node any more: hand over what is kept, and *ports*."""
        self._resign_at = 0.0
        try:
            if self._hand_over is not None and self._hand_over.stage == "taking":
                self._hand_over.hand({**self._kept, **ports})
        except OSError as error:
            _say(f"nothing can be handed over: {error.strerror}")
            self._hand_over_failed()
        finally:
            close_all(list(ports.values()))

    def _hand_over_failed(self) -> None:
        if self._hand_over is not None:
            self._hand_over.drop()
        self._take_back()

    def _take_back(self) -> None:
        """Who was to take over is dead: a new control takes the node back, workers and heartbeat never stopped."""
        _say("the daemon that was to take over is gone; this one takes the node back")
        self._resign_at = 0.0
        if self._stop_asked_at and not (self._coming or self._giving_back):
            self._stop_asked_at = 0.0
            self._stop()
            self._control.kill()
            self._end_data_plane()
        elif self._control:
            self._control.kill()
        else:
            self._start_at = max(time.monotonic(), self._control.started + RESPAWN_SECONDS)

    def _step_down(self, hand_over: HandOver) -> None:
        """The node is another daemon's: give everything up but the workers and who tells them of policies."""
        _say("another daemon has taken over; this one drains, and ends when what is open has ended", logging.INFO)
        self._stop_asked_at = 0.0
        self._heart.leave()
        hand_over.leave()
        if self._giving_back and self._predecessor is not None:
            self._predecessor.hang_up()  # it was not that one who came: there is nothing to give any more
        for lock in self._locks.values():
            lock.close()
        close_all(list(self._kept.values()))
        self._kept.clear()
        if self._control:
            self._tell(Superseded())
            self._watch_at = time.monotonic() + WATCH_SECONDS
        else:
            self._end_data_plane()

    def _look_after_node(self, now: float) -> None:
        """Look whether a daemon has the node: where none comes to have it again, this one does, and drains no more."""
        if self._regain is None or self._told:
            return
        if not all(is_free(lock.folder) for lock in self._locks.values()):
            self._vacant_since = 0.0
        elif not self._vacant_since:
            self._vacant_since = now
        elif now - self._vacant_since >= VACANT_SECONDS:
            self._vacant_since = math.inf
            _say(f"no daemon has had the node for {VACANT_SECONDS:g} s; what is open here has as long as in a stop")
            self._hasten()

    def _end_heart(self) -> None:
        """End the heartbeat; where another daemon beats it is that one's."""
        if self._alone and not self._superseded:
            self._heart.end()
        else:
            self._heart.leave()


def _say(words: str, level: int = logging.ERROR) -> None:
    say(log, words, level)


def main(roles: Mapping[str, Role], estate: Estate | None = None, stop_seconds: float = 0.0) -> int:
    """Run the daemon's processes; return the exit status.

    *roles*: what each may be, by name; CONTROL is started, the others when control asks. *estate*:
    what only the supervisor keeps, and passes on to a daemon that takes over. *stop_seconds*: how
    long a stop takes.
    """
    settle()
    signals = Signals(_SIGNALS)
    found = estate or Estate()
    while True:
        supervisor = Supervisor(roles, found, stop_seconds, signals)
        status = supervisor.run()
        if supervisor.regained is None:
            return status
        _say("this daemon takes the node back", logging.INFO)
        found = replace(supervisor.regained, manager=found.manager, regain=found.regain)
