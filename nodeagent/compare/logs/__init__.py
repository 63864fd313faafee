"""How fast the agent's logs are beside other programs that people run for them: lines of a file to
``_bulk`` on loopback, one core for the shipper, the other for who writes and who counts.

``lines.py`` (what is written), ``sink.py`` (who counts; ``sink_process.py``: its process),
``shippers.py`` (the programs and their configurations), ``agent.py`` (the agent's own collector, whole:
tail, process, delivery, sink), ``measure.py`` (one shipper under one load), ``run.py`` (rounds of them,
interleaved), ``beside.py`` (what a shipper does to the proxy of its node). ``micro.py`` says where the CPU
of a line goes, for who changes that.

The others are Debian's packages, unpacked beside everything else that is fetched (``make
shippers``): installing them would give the machine another system log. All of them send without
compression and add the same five fields; the sink gives them the shortest answer that there is,
and the agent one that names every record, as it asks for.
"""
