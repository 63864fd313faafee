"""Services of the machine as pods of the mesh: programs that systemd runs get identity, mTLS, policy, metrics and
logs as a pod does.

Theory of operation
-------------------

What a kubelet is for pods, this is for units: it follows what runs, and tells it where the cluster's
state is kept, as a Pod in the folder ``source``. There this machine's agent, and those of all
machines that share the folder, read it as they read any pod. A unit's network namespace is the
pod's sandbox: while the namespace stays, the pod does, whether the unit is being started anew or not, and it
is captured before the unit's first packet.

A namespace of its own is what a service must have (``NetworkNamespacePath=``, ``PrivateNetwork=``):
by it the kernel knows whose a connection is. Of several programs in one namespace, the machine's
own above all, it cannot say so at the receiving side, where a packet has no process yet.

``settings.py``: what agent.yaml says of a service. ``units.py``: what systemd says of a unit, and the
interface of who asks it. ``as_pods.py``: both together as a pod, pure. ``objects.py``: the pods as files.
``follower.py``: keeps the files as the units are; it is the Place of those pods, too. ``source.py``: the
folder as a source that is read once places are known.

Nothing here starts, stops or changes a unit.
"""
