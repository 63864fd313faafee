"""A real Kubernetes on one machine, for tests and for trying things: nothing of it is a stand-in.

Theory of operation
-------------------
Everything but etcd, containerd, runc and the CNI plugins is one binary, which ``make kube`` builds
from Go modules. The control plane (etcd, API server, controllers, scheduler) has a network namespace
of its own, with the bridge that joins the nodes. A *node* has namespaces of its own for network,
mounts, cgroups, processes and its name (``node.py``): its files are an overlay over this machine's,
so that what a pod writes to a ``hostPath`` stays in the node; its cgroup is the root of every
hierarchy, so that all nodes see the same paths and one manifest serves all; /run, /var/log and bpffs
are its own. It ends with its first process.

So two clusters never meet, nothing of a cluster is seen from outside but its folder, its cgroups and
the files of its network namespaces, and :meth:`Kube.remove` finds all three by the cluster's name or,
after a crash, by its folder, which nobody locks any more.

Who is who is as in a cluster that kubeadm makes: certificates of one CA, the Node authorizer with
NodeRestriction, RBAC, and kubelets that ask the API server who calls them. The one short cut are
tokens from a file, for administrator and kubelets.

Images are made of what is installed on this machine (``images.py``); a node begins with all of them
in its containerd, as hard links to a *seed* that is made once (``seed.py``).

``cluster.py`` is a cluster; ``layout.py`` says what is called how, ``config.py`` what the components
are told, both pure.
"""

from nodeagent.lab.kube.cluster import Kube

__all__ = ["Kube"]
