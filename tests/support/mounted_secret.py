"""A Secret in a folder, refreshed as kubelet does it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MountedSecret"]


class MountedSecret:
    """A Secret as kubelet mounts it: links to a folder that is exchanged as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = 0
        path.mkdir()

    def put(self, **entries: bytes) -> None:
        self._version += 1
        folder = self.path / f"..version-{self._version}"
        folder.mkdir()
        for name, value in entries.items():
            (folder / name).write_bytes(value)
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        beside = self.path / "..data_tmp"
        beside.symlink_to(folder.name)
        beside.replace(self.path / "..data")
        for link in self.path.iterdir():
            if link.is_symlink() and not link.name.startswith("..") and link.name not in entries:
                link.unlink()
