"""Records to sinks: how long they wait, in which order, how often, and what becomes of those that a
sink does not want. What a sink's protocol says is the sink's (``nodeagent/logs/sinks``).

One :class:`~nodeagent.logs.delivery.lane.Lane` a sink. A record offered to it is in exactly one of
these places, and ``SinkCounts`` has a number for each::

    offered ─▶ waiting in memory ─▶ under way ─▶ delivered
                  │      ▲   ▲          ├──────▶ dead-lettered (refused by the sink, or dropped if that file
                  ▼      │   └─ again ──┤         cannot be written)
               buffered ─┘              └──────▶ dropped (counted by reason)

**Memory** holds what fits the window, whatever the sink does. Past it the lane has no room, and files
are read no further. A pod's records wait in a queue of their own; queues are served in turn.

**The buffer** on disk is used when the oldest record has waited longer than it should: then
everything that waits goes to disk, is settled there, and all that comes after it follows, until the
sink has taken the last of it. So a sink that is down for hours costs disk, a catch-up costs none.

**By itself** goes a pod that the sink limits while it takes others: it has a lane of its own beside
the sink's, with its own pauses and its own folder in the buffer, whose bound is for all of them.

**Again.** A request that a sink took nothing of makes the lane pause, longer each time, by a random
share. Of a request that it took in part only the rest comes again, beside later ones; where the sink
wants order, before them (``answers.py``, ``pace.py``). What a sink refuses goes to the dead letters
(``dead_letters.py``).
"""
