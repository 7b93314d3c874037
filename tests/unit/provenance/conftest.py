"""The object store in memory from the tests of images."""

from tests.unit.images.conftest import filesystems, memory, register

__all__ = ["filesystems", "memory", "register"]
