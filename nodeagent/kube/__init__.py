"""The cluster as Kubernetes' API says it is.

``access.py`` says where the API server is and who asks, ``client.py`` asks it.

Nothing here decides about traffic, and nothing that the API server says may end a process.
"""
