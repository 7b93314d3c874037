"""An object store in memory."""

from tests.unit.images.conftest import filesystems, memory, register

__all__ = ["filesystems", "memory", "register"]
