"""The systemd units of the daemon, as `dray daemon unit` prints them (systemd.service(5), systemd.socket(5)).

`KillMode=process`: a stop or restart of the service ends the daemon and nothing else, so containers run on.
`OOMPolicy=continue`: a shim that the kernel kills is no reason to stop the daemon. `Delegate=yes`: systemd keeps its
hands off what is below the service's cgroup.
"""

from __future__ import annotations

import os
import shutil
import sys

from dray.base.errors import NotFound

SERVICE = """\
[Unit]
Description=dray, a Docker Engine
After=network-online.target nss-lookup.target firewalld.service
Wants=network-online.target
StartLimitBurst=5
StartLimitIntervalSec=60

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -s HUP $MAINPID
Restart=always
RestartSec=2
KillMode=process
Delegate=yes
OOMPolicy=continue
OOMScoreAdjust=-500
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity

[Install]
WantedBy=multi-user.target
"""

SOCKET = """\
[Unit]
Description=The Engine API's socket of dray

[Socket]
ListenStream={path}
SocketMode=0660
SocketUser=root
SocketGroup={group}
Service=dray.service

[Install]
WantedBy=sockets.target
"""


def drayd() -> str:
    """Return the daemon's absolute path: the one that was installed with this client, else the first in PATH."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "drayd")
    found = beside if os.access(beside, os.X_OK) else shutil.which("drayd")
    if found is None:
        raise NotFound("drayd is neither beside this program nor in PATH: is the package installed?")
    return found


def service(*, socket: bool = False) -> str:
    """Return the service unit; with `socket`, the daemon listens on what the socket unit hands it."""
    return SERVICE.format(command=f"{drayd()} -H fd://" if socket else drayd())


def socket_unit(path: str, group: str) -> str:
    """Return the socket unit for a unix socket at `path` that members of `group` may use."""
    return SOCKET.format(path=path, group=group)
