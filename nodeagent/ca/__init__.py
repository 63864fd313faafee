"""``nodeagent ca``: a certificate authority for nodes that do not share a directory, with Istio's
protocol (istio.v1.auth).
"""
