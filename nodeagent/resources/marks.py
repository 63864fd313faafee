"""Marks of enrolment as a folder that nodes share: one empty file a pod that takes mTLS, named by
the pod's uid.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from nodeagent.errors import ResourceError
from nodeagent.vocabulary import PodUid

ENROLLED: Final = "enrolled"
"""The folder's name within the cluster's state."""
_MARK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def is_mark(name: str) -> bool:
    """Say whether a file of this *name* can be a pod's mark."""
    return _MARK.fullmatch(name) is not None


class DirectoryMarks:
    """Writes marks into the cluster's state at *path*."""

    def __init__(self, path: Path) -> None:
        self._folder = path / ENROLLED

    def publish(self, uid: PodUid, enrolled: bool) -> None:
        """Make or remove the mark of the pod *uid*. Idempotent. Raises ResourceError: the uid can
        be no file's name, or the folder cannot be written.
        """
        if not is_mark(uid):
            raise ResourceError(f"metadata.uid: {uid!r:.80}: letters, digits, '.', '_' and '-' are allowed")
        mark = self._folder / uid
        try:
            if enrolled:
                self._folder.mkdir(exist_ok=True)
                mark.touch()
            else:
                mark.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"{mark}: cannot be {'made' if enrolled else 'removed'}: {error.strerror}") from None
