"""Where octavo keeps what users give it, for their eyes only."""

import os
from pathlib import Path

from octavo.errors import StoreError

_NETWORKS = frozenset("nfs nfs4 cifs smb3 smbfs 9p afs fuse.sshfs fuse.s3fs ceph glusterfs".split())


def home() -> Path:
    """Return `$OCTAVO_HOME`, or else `~/.octavo`: where what users give octavo is kept."""
    return Path(os.environ.get("OCTAVO_HOME") or Path.home() / ".octavo").expanduser()


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter; one that is there stays as it is."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {folder}: {error.strerror}; choose another (OCTAVO_HOME)"
        ) from error


def check_local(folder: Path) -> None:
    """Refuse network file systems, where locks and shared memory between processes fail unseen."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return  # not Linux
    here, kind = str(folder.resolve()), ""
    longest = -1
    for line in mounts:
        _, place, what, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        is_above = here == place or here.startswith(place.rstrip("/") + "/")
        if is_above and len(place) >= longest:
            longest, kind = len(place), what
    if kind in _NETWORKS:
        raise StoreError(
            f"{folder} is on a network ({kind}), where a store is damaged without a sign; choose a "
            "local folder (OCTAVO_HOME)"
        )
