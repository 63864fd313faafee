"""Kubernetes' and Istio's objects: read, validated field by field, and followed as they change.

``source.py`` says what a source of the cluster's state is; ``directory.py``, a watched folder of
objects and folders of YAML, is one. ``security.py`` reads policies, each kind by a module of its
own (``rate_limit.py`` and its neighbours), ``precedence.py`` decides between several documents with
one name, ``objects.py`` reads what the mesh needs of Kubernetes' objects, ``model.py`` and
``pod.py`` the strict manifests of a lab. YAML is read as Kubernetes reads it (``yaml_text.py``).

A document that is wrong is named in the log and in ``nodeagent get policies``, and the last good
one stays, over a restart too (``last_good.py``); where there is none, what stands in for a policy
closes what it selects (``security.py: stand_in``). While a pod's own document is wrong from the
start, nothing that an earlier daemon left is removed: it may protect that pod, which is then
treated as while no daemon is there. Whatever a reader or a library raises becomes one error of ours
where the document comes in (``errors.py: translated``).
"""
