"""Where a pod runs on its node: its network namespace and its cgroup, by which it is captured and
known. The API server does not say so; who made the pod does.
"""
