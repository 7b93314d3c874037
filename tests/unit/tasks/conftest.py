"""An object store in memory for the records of submissions."""

from tests.unit.images.conftest import filesystems, register

__all__ = ["filesystems", "register"]
