"""Whole lines of files that grow, are rotated in every way, and disappear: each line at least once, and
under the same name whenever it comes again.

Theory of operation
===================

**Three things that are easily one.** A *file* (``files.py``) is an open descriptor: device, inode, time
of birth. A *generation* (``generation.py``) is one content: it begins at the file's first byte and ends
where the file is truncated. Its id is what records are named by; a generation may change its file: a
rotated one that is compressed goes on in the ``.gz`` file, one that was copied and truncated goes on
in the copy. A *log* (``log.py``, its :class:`LogSource` is its name) is a row of generations that follow
each other: what a container wrote, or one file with all that it was rotated to.

**Files come as descriptors.** Who finds them (``nodeagent/control``) opens every file of a folder,
rotated and compressed ones too, and hands the descriptor to :meth:`Tail.add`. Nothing here opens a
path. What a file is called does not matter to what it is: an open descriptor survives renaming and
removal, and so several rotations between two looks lose nothing that was opened.

**Looks, not events.** A file that grew lately is looked at in every round, an idle one four times a
second (``schedule.py``): ``pread`` at its end costs less than an inotify watch saves, and no event is
needed to see a truncation.

**Is it still the same content?** Before anything is read, the up to 1 KiB before the offset is read with
it, and compared by its hash with what stood there. A file that shrank, or whose bytes before the offset
are others, has a new generation. Likewise after a restart: an entry of the positions file names device,
inode and birth, but only the bytes decide. It counts whatever source the file is handed over as: one that
was renamed while nobody looked may be told as a log of its own. What begins alike is told apart by what
stands before the offset, not by its head.

**Nothing is delivered that the next one would not know.** How a content begins is in the positions file before
its first lines are delivered, and once more at 4 KiB; the file has how far it was read beyond what is settled,
too. So what was copied, compressed or truncated before it was settled is found after a restart, and goes on
under its name.

**What a generation is called.** The hash of node, source, device, inode, birth, first line, and how often
the file was truncated before. So the id is the same after a restart, also when positions were lost
(save for truncated files, whose lines then come twice under two names, never two lines under one).

**The journal.** A file of systemd's journal is read as a text that only grows, a line an entry (``journal_file.py``,
``journal_values.py``): it has a generation as any other, and is not compared with any.

**Twins.** A file nobody knows, in a log with other content, may be a copy of what was read already: compressed
(``0.log.20260101-000000.gz``) or made before a truncation (``app.log.1``). It is compared by content: a
checksum over everything up to where the other was read (``twins.py``). A twin that is confirmed has the
other's id and goes on at its offset. In doubt a file is one of its own: its lines may come twice, none
is missing.

**Order and fairness.** In a log, a generation is read to its end before the next one begins. Pods take turns,
then a pod's logs; each turn reads at most :attr:`TailSettings.turn_bytes` of one file, and nothing where
those behind it have no room (:meth:`Taker.room`).

**Many files.** A log may have thousands of them: one a request, or one a day. Only those that have something to
do have turns, or are gone through as time passes (``in_order.py``). What a new file may be a copy of is found by how
it begins (``heads.py``). All that is new at a time is told in one write of the positions file, and what goes before
new files is looked at once for all of them.

**Lines.** Only whole lines are delivered. A longer one than :attr:`TailSettings.line_bytes` is cut at that
length, counted from its first byte, so that it is cut alike when it is read again. What has no end for a
while, or never will have one as the file was rotated, is delivered too; since it may grow after all,
where it was cut is on disk before it is delivered.

**Positions** (``positions.py``) advance over what every sink has settled, in the order of the file
(:class:`Coverage`), and are written at most once a second: whole, checksummed, synced, then renamed. While they
cannot be written all goes on, and that is said; what is lost is that a restart re-sends more.

Who composes it
===============

::

    tail = Tail(node, folder, open_taker, TailSettings())   # folder: of the positions file
    tail.add(descriptor, LogSource(key, uid), name)            # takes the descriptor over; the same file twice: closed
    tail.named(device, inode, name)                         # a file was renamed; that one is gone needs no word
    task = create_task(tail.run())                          # looks, reads, saves; tail.wake(): there is room again
    await tail.stop()                                       # positions of what is settled by now are saved

``open_taker(source, id, coverage)`` makes the :class:`Taker` of each generation. For every stretch of
records that its processor gives: ``Receipt(sinks, coverage.stretch(records.end))``.
"""
