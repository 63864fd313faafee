"""Classic per-pod sidecars: given to pods and workloads by hand (``nodeagent inject``) or by a
webhook, which both use :func:`inject`.
"""

from nodeagent.errors import InjectionError
from nodeagent.inject.injector import inject, uninject
from nodeagent.inject.model import Injected, Namespace, Settings, Skipped
from nodeagent.istio import STATUS

__all__ = ["STATUS", "Injected", "InjectionError", "Namespace", "Settings", "Skipped", "inject", "uninject"]
