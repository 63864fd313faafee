"""What is done to a whole cluster from outside of it: ``nodeagent install``, ``nodeagent uninstall
--cluster`` and ``nodeagent check --cluster``.

``manifests.py`` reads what is to be there, ``resources.py`` finds where the API server keeps
objects of a kind, ``placement.py`` where the agents are, ``install.py`` applies and waits,
``on_nodes.py`` has a command run on every node as the agent would run there, ``remove.py`` takes
everything away again, ``check.py`` and ``connectivity.py`` look whether it works.

Each is idempotent and may be broken off at any point: what is there already is left, what is gone
already is no error. Nothing here runs in a daemon.
"""
