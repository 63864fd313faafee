"""The control process: owns what needs privilege and what is slow, and never touches a pod's bytes."""
