#!/bin/bash
# The MTP head that reads its drafts, taught further on one GPU in some ten minutes:
#
#     bash scripts/smollm2/fed_back.sh runs/fed_back 540 cuda
#
# 540: seconds, of which three tenths go into requests that the model writes from openings, and its
# answers. The GGUF file lies in DMTD_CACHE, or in pieces beside the results: OUT/FILE.part0 …
# OUT/add-ons is then the shipped folder with the new head, its card and its log.
set -euo pipefail
out=$1 seconds=$2 device=$3
here=$(dirname "$0")
python=${PYTHON:-python}
share() { "$python" -c "print($seconds * $1 / 60)"; }
mkdir -p "$out/texts"
if compgen -G "$out/*.part0" > /dev/null; then
    export DMTD_CACHE=$PWD/$out/cache
    mkdir -p "$DMTD_CACHE"
    for first in "$out"/*.part0; do
        cat "${first%0}"[0-9] > "$DMTD_CACHE/$(basename "${first%.part0}")"
    done
fi
if [ ! -e "$out/more.npz" ]; then
    "$python" "$here/everyday.py" "$out/texts" --openings --seed 7 --minutes "$(share 0.3)"
    "$python" "$here/everyday.py" "$out/texts" --cut --pack "$out/more.npz"
fi
for texts in more opened everyday conversations; do
    # what is there when the time is up is learned from
    timeout "$("$python" -c "print(max(20, $seconds * 0.06))")" \
        "$python" "$here/longer.py" states "$out" --texts $texts --device "$device" ||
        [ $? = 124 ]
done
learn=(--device "$device" --optimizer muon --often more=2 opened=2)
[ "$device" = cpu ] || learn+=(--positions 4096 --learned 2560 --rate 1e-3)
"$python" "$here/longer.py" train "$out" "${learn[@]}" --minutes "$(share 0.4)" \
    --judged 4096 --judged-last 16384
rm -rf "$out/add-ons"
cp -r "$here/../../assets/smollm2-135m" "$out/add-ons"
"$python" "$here/longer.py" bundle "$out" "$out/add-ons" --device "$device"
