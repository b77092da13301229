# shellcheck shell=bash
# How the set-up scripts speak and wait: one line per step with its time, one line when a step cannot work. Sourced, never run.

: "${HOME:=/root}"
# What outlives a clone but can always be made again.
CACHE_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/greenroom"
LOG="$CACHE_DIR/setup.log"
mkdir -p "$CACHE_DIR"

# said TEXT: one line, under the name of the script that says it.
said() { printf '%-14s %s\n' "${0##*/}:" "$*"; }

# already TEXT: nothing to do, and why.
already() { said "already $*"; }

# stop_with MISSING TYPE: the one line of a step that cannot work.
stop_with() {
    printf '%-14s %s — type: %s\n' "${0##*/}:" "$1" "$2" >&2
    exit 1
}

seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }'; }

# step TEXT COMMAND…: runs it with its output in the log; says the text and the time. On failure the last lines of
# the output follow, because a log that must be looked for is not read.
step() {
    local text="$1" began="$EPOCHREALTIME" output
    shift
    output="$(mktemp)"
    local code=0
    "$@" >"$output" 2>&1 </dev/null || code=$?
    { printf '== %s: %s\n' "${0##*/}" "$text"; cat "$output"; } >>"$LOG"
    if ((code != 0)); then
        tail -n 8 "$output" | sed 's/^/    | /' >&2
        said "failed: $text ($(seconds_since "$began"))" >&2
    else
        said "$text ($(seconds_since "$began"))"
    fi
    rm -f "$output"
    return "$code"
}

# retry TRIES COMMAND…: for what a network may refuse once.
retry() {
    local tries="$1" try
    shift
    for ((try = 1; try < tries; try++)); do
        "$@" && return 0
        echo "try $try of $tries failed: $*"
        sleep $((try * 3))
    done
    "$@"
}

# within SECONDS COMMAND…: waits for the command to succeed.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# The certificates that this host trusts, for what reaches a package index; possibly none.
certificates() {
    local file
    for file in "${PIP_CERT:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
        [[ -n "$file" && -r "$file" ]] && { cat "$file"; return; }
    done
    return 0
}

have() { command -v "$1" >/dev/null 2>&1; }

# need_root WHAT
need_root() {
    # shellcheck disable=SC2016 # the reader's shell expands it
    [[ $(id -u) == 0 ]] || stop_with "$1 needs root" 'sudo env "PATH=$PATH" make setup'
}

# install_packages NAME…: apt's lists are fetched only when they do not know a package yet.
install_packages() {
    local name
    for name in "$@"; do
        apt-cache show "$name" >/dev/null 2>&1 || { retry 3 apt-get update -q; break; }
    done
    DEBIAN_FRONTEND=noninteractive retry 3 apt-get install -q -y --no-install-recommends "$@"
}
