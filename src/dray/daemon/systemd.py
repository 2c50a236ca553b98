"""What the daemon tells systemd, and asks it: sd_notify(3), and whether the machine goes down."""

from __future__ import annotations

import contextlib
import os
import subprocess

_PATIENCE = 5  # seconds for systemctl, on a machine that is busy with its end


def notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)), if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def machine_goes_down() -> bool:
    """Tell whether the daemon is asked to go because the machine does (`systemctl is-system-running`).

    Nobody else would stop the containers then: an init without a handler does not hear systemd's SIGTERM, and the
    shutdown would wait 90 seconds for it.
    """
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return False
    try:
        asked = ["systemctl", "is-system-running"]
        done = subprocess.run(asked, capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == b"stopping"
