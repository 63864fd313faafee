"""The snapshot: what all workers decide by, compiled from resources into small frozen entries, one
a workload and one a Service. Pure: it reads no file and opens no socket.

``cluster_state.py`` keeps the objects and knows what a change touches; ``compile.py`` makes that
anew and nothing else, once for all that are alike (``alike.py``). ``entries.py`` are the entries,
which go to the workers as deltas and become indexes there (``proxy/view.py``); a request keeps the
entries with which it started. Policies go only to nodes with a pod that they are for. One that
selects a pod and did not arrive denies everything there (``entries.py: policies_of``). A change is
a generation, which each worker acknowledges when it is in force in it, open connections included; a
policy is in force when every worker and the kernel's maps have acknowledged what brought it.

``kernel_plan.py`` works out which ports need no proxy, and each verdict for them; ``protection.py``
what becomes of a pod while no daemon looks; ``explain.py`` who decides, in words.
``membership.py`` decides which pods are in the mesh, ``node_pods.py`` keeps what was decided of
those of the node, ``local.py`` says how a pod is captured, with which exceptions.

**Delivery** (``delivery.py``) is decided for each pair of pods when a route is made: ``inside``, a
socket of the server's pod dials its application, and a pool serves all connections of one client;
or ``network``, a socket of the client's pod does, and serves that connection of the client alone,
because a CNI plugin decides when a connection begins: nothing new goes over an old one. Connections
to other nodes and outside are bound likewise. Which pods NetworkPolicies select,
``network_policies.py`` knows; a policy that cannot be read may be for any pod.
"""
