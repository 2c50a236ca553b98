#!/bin/bash
# Install those of the named Debian packages that are missing, without starting any service they bring.
set -eu

missing=()
for name in "$@"; do
    dpkg-query --show --showformat='${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^ii' || missing+=("$name")
done
[ "$(command -v docker)" ] || missing+=("docker-cli")
[ ${#missing[@]} -gt 0 ] || exit 0

export DEBIAN_FRONTEND=noninteractive
if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
    apt-get update --quiet=2
fi
# docker-cli is a package of its own in newer releases; before, docker.io has the client.
known=()
for name in "${missing[@]}"; do
    if [ "$name" = docker-cli ] && ! apt-cache show docker-cli >/dev/null 2>&1; then
        continue
    fi
    known+=("$name")
done

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
install() {
    apt-get install --yes --no-install-recommends --quiet=2 "${known[@]}" >/dev/null
}
# Lists that are too old name packages that are gone: fetch new ones and try once more.
install || { apt-get update --quiet=2 && install; }
