"""Make src/dray/engine/data/ from the reference files of the Engine's defaults.

    python tools/default_profiles.py seccomp-default.json default-linux-spec.json src/dray/engine/data

Only the layout changes: comments and indentation go, so that loading costs little.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Write seccomp.json and defaults.json."""
    seccomp, defaults, target = (Path(argument) for argument in sys.argv[1:4])
    keep = (
        "default_capabilities",
        "default_masked_paths",
        "default_readonly_paths",
        "default_mounts",
        "default_device_cgroup_rules",
    )
    found = json.loads(defaults.read_text())
    shorter = {key.removeprefix("default_"): found[key] for key in keep}
    shorter["device_cgroup_rules"] = [
        {key: value for key, value in rule.items() if value is not None} for rule in shorter["device_cgroup_rules"]
    ]
    for name, content in (("seccomp.json", json.loads(seccomp.read_text())), ("defaults.json", shorter)):
        (target / name).write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
