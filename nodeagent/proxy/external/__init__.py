"""Asking others about requests, over gRPC: external authorizers and rate limit services, named by
``extensionProviders`` in agent.yaml.
"""
