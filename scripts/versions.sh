#!/usr/bin/env bash
# The tests on the ends of the version ranges of requirements.txt, each in a fresh environment:
#   scripts/versions.sh lowest [pytest's options]      scripts/versions.sh highest [pytest's options]
# KEEP="torch" leaves a package to pip where its lowest version cannot be had for this machine (old builds of torch for Linux bring gigabytes of CUDA).
set -euo pipefail
cd "$(dirname "$0")/.."
end=${1:?lowest or highest}
shift

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
python3 -m venv "$fresh/venv"
export PATH="$fresh/venv/bin:$PATH"
case $end in
  lowest) sed -nE 's/^([A-Za-z0-9_.-]+)>=([0-9.]+).*/\1==\2/p' requirements.txt | grep -vE "^(${KEEP:-none})==" > "$fresh/constraints.txt" ;;
  highest) : > "$fresh/constraints.txt" ;;
  *) echo "needs lowest or highest; got $end" >&2; exit 2 ;;
esac
python -m pip install -q "torch>=2.8,<2.14" -c "$fresh/constraints.txt"
python -m pip install -q -r requirements-dev.txt -c "$fresh/constraints.txt"
python -m pip list | grep -E "^($(sed -nE 's/^([A-Za-z0-9_.-]+)[><=].*/\1/p' requirements.txt | paste -sd '|')) "
python -m pytest "$@"
