#!/bin/bash
# The bundled hello-world in a private daemon: own socket, own folders, no network; everything goes at the end.
# Usage: hello.sh BIN, the folder with dray, drayd and python.
set -u

bin=$(cd "$1" && pwd)
if [ "$(id -u)" != 0 ]; then
    echo "containers need root: run this as root" >&2
    exit 1
fi
base=$(mktemp -d "${TMPDIR:-/tmp}/dray-hello-XXXXXX")
export DOCKER_HOST="unix://$base/dray.sock" DOCKER_CONFIG="$base/client"
unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_API_VERSION
daemon=

finish() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2>/dev/null
        wait "$daemon" 2>/dev/null
    fi
    # Deepest first; nothing is mounted here unless the daemon was killed.
    awk -v base="$base/" 'index($5, base) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
    rm -rf "$base"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$bin/drayd" -H "$DOCKER_HOST" --data-root "$base/data" --exec-root "$base/exec" --pidfile "$base/drayd.pid" \
    --bridge none >"$base/drayd.log" 2>&1 &
daemon=$!
for _ in $(seq 200); do
    [ -S "$base/dray.sock" ] && "$bin/dray" version >/dev/null 2>&1 && break
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.05
done

set -e
made='import sys; from dray.store.helloworld import archive; sys.stdout.buffer.write(archive())'
if ! "$bin/python" -c "$made" >"$base/hello-world.tar" || ! "$bin/dray" load -i "$base/hello-world.tar" ||
    ! "$bin/dray" run --rm hello-world; then
    echo "the daemon's log:" >&2
    tail -n 30 "$base/drayd.log" >&2
    exit 1
fi
