"""Restart policies: a pure decision and the back-off between attempts (moby `restartmanager`)."""

from __future__ import annotations

from dataclasses import dataclass

from dray.api.models import ContainerConfig, RestartPolicy
from dray.base.errors import InvalidParameter

FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
GOOD_RUN = 10.0  # seconds after which a run counts as good and the back-off starts anew


@dataclass(slots=True)
class BackOff:
    """The growing pause before the next restart: 100 ms, doubled each time up to a minute."""

    delay: float = 0.0

    def after_run_of(self, seconds: float) -> float:
        """Return how long to wait after a run that lasted `seconds`."""
        if self.delay == 0.0 or seconds >= GOOD_RUN:
            self.delay = FIRST_DELAY
        else:
            self.delay = min(self.delay * 2, LONGEST_DELAY)
        return self.delay


UNHEALTHY_LABEL = "dray.restart-unhealthy"


def restarts_unhealthy(config: ContainerConfig) -> bool:
    """Tell whether a container asked, by its label, to be restarted when its health check finds it unhealthy."""
    value = (config.labels or {}).get(UNHEALTHY_LABEL, "false")
    if value not in ("true", "false"):
        raise InvalidParameter(f"invalid label {UNHEALTHY_LABEL}={value}: use true or false")
    return value == "true"


def should_restart(
    policy: RestartPolicy, *, exit_code: int, restart_count: int, manually_stopped: bool, at_boot: bool
) -> bool:
    """Decide whether a container that ended is started again.

    A stop by hand holds until the daemon's next start for `always`, for good for `unless-stopped`.
    """
    name = policy.name or "no"
    if name == "always":
        return at_boot or not manually_stopped
    if manually_stopped:
        return False
    if name == "unless-stopped":
        return True
    if name == "on-failure":
        limit = policy.maximum_retry_count
        return exit_code != 0 and (limit == 0 or restart_count < limit)
    return False
