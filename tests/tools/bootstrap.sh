#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes a fresh Debian 12 ready: Debian packages, Python environments, the tree that Ansible finds the collection in.
# Does only what is missing, so a second run is instant. pip and apt are used as this machine's administrator set them up.
#
#   bootstrap.sh          everything
#   bootstrap.sh --quiet  the same; says nothing when nothing was missing
#   bootstrap.sh --eda    what `make test-eda` needs besides
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmm-live-upgrade
quiet=${1:-}

say() { printf 'setup: %s\n' "$*"; }

main() {
    mkdir -p "$cache/venvs" "$root/build"
    exec 9>"$cache/setup.lock"
    flock 9
    install_debian_packages
    local python next
    python=$(find_python 3.11) || {
        say "no Python >= 3.11 with venv and ensurepip was found (python3-venv is installed; set PYTHON=/path/to/python3)"
        exit 1
    }
    link_environment "$python" tests/requirements.txt .venv
    if [ "$quiet" = --eda ]; then
        link_environment "$python" tests/requirements-eda.txt .venv-eda
        command -v java >/dev/null || {
            say "ansible-rulebook needs a Java runtime of version 17 or later: apt-get install default-jre-headless"
            exit 1
        }
        return
    fi
    if next=$(find_python 3.12); then
        link_environment "$next" tests/requirements-next.txt .venv-next
    else
        rm -f "$root/.venv-next"
        say "no Python >= 3.12 here: the unit tests will not run on ansible-core 2.21"
    fi
    mkdir -p "$root/build/tree/ansible_collections/vmm"
    ln -sfn ../../../.. "$root/build/tree/ansible_collections/vmm/live_upgrade"
    [ "$quiet" = --quiet ] || say "ready"
}

install_debian_packages() {
    local wanted installed missing
    wanted=$(awk '$1 !~ /^#/ && NF { print $1 }' "$root/tests/tools/debian-packages.txt" | sort)
    # shellcheck disable=SC2016  # the dollar is dpkg-query's
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' | awk '$1 == "installed" { print $2 }' | sort -u)
    missing=$(comm -23 <(echo "$wanted") <(echo "$installed"))
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086  # words
    say "Debian packages:" $missing
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get -q update >"$root/build/apt.log" 2>&1 || { tail -n 20 "$root/build/apt.log"; exit 1; }
    # shellcheck disable=SC2086  # words
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 \
        install --no-install-recommends $missing >>"$root/build/apt.log" 2>&1 || { tail -n 20 "$root/build/apt.log"; exit 1; }
}

# The first Python of at least the given version that can make environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} /usr/bin/python3 python3 python3.11 python3.12 python3.13 python3.14 \
        "$HOME"/.pyenv/versions/*/bin/python3; do
        candidate=$(command -v "$candidate") || continue
        if "$candidate" -c "import ensurepip, sys, venv; sys.exit(sys.version_info < tuple(map(int, '$1'.split('.'))))" \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# An environment is named by what it is made of; a name that exists is complete, and other checkouts may use it too.
link_environment() {
    local python=$1 requirements=$root/$2 link=$root/$3 key venv
    key=$({ "$python" -c 'import sys; print(sys.version, sys.executable)'; cat "$requirements"; } | sha256sum | cut -c1-16)
    venv=$cache/venvs/$key
    if ! [ -e "$venv/complete" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        say "Python environment for $2 with $("$python" -V)"
        rm -rf "$venv"
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -r "$requirements" \
            >"$root/build/pip.log" 2>&1 || { tail -n 20 "$root/build/pip.log"; exit 1; }
        touch "$venv/complete"
    fi
    rm -rf "$link"
    ln -s "$venv" "$link"
}

main
