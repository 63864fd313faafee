"""Asking others about requests: external authorizers over gRPC (``ext_authz.py``) or HTTP
(``http_authz.py``) and rate limit services, named by ``extensionProviders`` in agent.yaml.

Workers ask: services that take mTLS from inside the protected pod and with its identity, all others
from the node's network in plaintext. A body that an authorizer wants to see is held up to
maxRequestBytes (``body.py``), then goes on unchanged.
"""
