"""The daemons of a run: brought back after a failed row, taken down at the end."""

from __future__ import annotations

import subprocess
import sys

from support.engines import Engine
from support.world import World


def revive(engines: list[Engine]) -> None:
    """After a failed row: daemons running again, without containers."""
    for engine in engines:
        if engine.daemon is None or engine.daemon.poll() is not None:
            engine.daemon = None
            engine.start()
        engine.remove_everything()


def close(engines: list[Engine], world: World) -> None:
    """Stop and remove them all, whatever state they are in, and leave the world."""
    for engine in engines:
        try:
            if engine.daemon is not None:
                engine.remove_everything()
                engine.stop()
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            print(f"{engine.name} could not be stopped: {error}", file=sys.stderr)
    world.kill_all()
    for engine in engines:
        engine.daemon = None
        engine.destroy()
    world.leave()
