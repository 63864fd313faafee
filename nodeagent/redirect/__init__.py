"""Capture: BPF programs, their maps and links, and the sockets inside pods. ``DataPlane`` is
control's way in, ``OriginalDestinations`` a worker's.
"""
