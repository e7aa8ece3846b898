#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Resolves tests/requirements*.in anew and writes the pinned tests/requirements*.txt.
#
#   pin_requirements.sh PYTHON_3_11 PYTHON_3_12
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pin() {
    local python=$1 name=$2
    "$python" -m venv "$work/$name"
    "$work/$name/bin/python" -m pip install --quiet --quiet -r "$root/tests/$name.in"
    {
        echo "# SPDX-License-Identifier: GPL-3.0-or-later"
        echo "# Made by tests/tools/pin_requirements.sh from $name.in; do not edit."
        "$work/$name/bin/python" -m pip freeze
    } >"$work/$name.txt"
    mv "$work/$name.txt" "$root/tests/$name.txt"
}

pin "$1" requirements
pin "$2" requirements-next
pin "$1" requirements-eda
