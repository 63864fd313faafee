"""Chunks of a file made into records: lines taken out of the runtime's format, joined, parsed, redacted,
and made into objects that a strict server takes. Pure: no file, no clock, no sink.

::

    Chunk ─▶ framing ─▶ joining ─▶ rules, rate ─▶ parsing ─▶ objects ─▶ LogRecords
             (cri,       (partial     (drop,         (json,      (valid, no name
             docker,     lines,       redact)        logfmt,     that a sink's own
             plain)      traces)                     regex)      members repeat)

Everything goes by columns, and what is right for a whole chunk is proven for the whole chunk: only
lines that are not as the others are looked at one by one (``objects.py`` says how that is proven).

Between chunks a :class:`~nodeagent.logs.process.processor.Processor` holds back lines of a stream that
are not whole yet. It says so by the end of what it returns: whoever reads the file again from there
makes the same records with the same ids.

Nothing from a log ends it, and no search takes more than linear time (RE2; a pattern that is found again
and again in one line may look at its rest each time, and a line is bounded); what is held is bounded
in bytes, lines and time, and what is not of its format is kept as text and counted.
"""
