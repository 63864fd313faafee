"""nodeagent: a service mesh's sidecars, once per node instead of once per pod."""

__version__ = "0.1.0"
