"""Metrics, access log, and the small HTTP servers that tell them.

Every metric is declared once (``metrics.py``), counted in workers (``cells.py``: cells that are
prepared per route), and summed in control (``store.py``). What a worker reports is checked before
it is counted (``reports.py``); series are bounded for each pod. A daemon that drains reports to its
successor in the same way (``late_reports.py``). prometheus_client writes what a scrape gets
(``exposition.py``), in the format that it prefers (``formats.py``, ``negotiation.py``).
The open ports answer scrapes from one rendering a second (``scrapes.py``; port 15000 renders anew)
and give each address its share of connections and its pace (``sources.py``).
"""
