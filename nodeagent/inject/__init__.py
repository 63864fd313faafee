"""Classic per-pod sidecars: a pod in, the pod with its sidecar out, pure but for the template's
file. The command (``nodeagent inject``), the webhook and the lab use the same :func:`inject`.

``shape.py`` checks what is read of a pod, ``selection.py`` says who gets a sidecar,
``annotated.py`` reads Istio's annotations, ``probes.py`` leads probes to port 15020,
``template.py`` renders what is added (``templates/``), with the values of ``values.py``;
``envoy.py`` and ``rbac.py`` make Envoy's bootstrap and its policies; ``status.py`` writes the
annotation for the way back; ``injector.py`` joins them. ``documents.py``, ``round_trip.py`` and
``cutting.py`` change YAML text and nothing else of it.
"""

from nodeagent.errors import InjectionError
from nodeagent.inject.injector import inject, uninject
from nodeagent.inject.model import Injected, InjectionSettings, PodNamespace, Skipped
from nodeagent.istio import STATUS

__all__ = ["STATUS", "Injected", "InjectionError", "InjectionSettings", "PodNamespace", "Skipped", "inject", "uninject"]
