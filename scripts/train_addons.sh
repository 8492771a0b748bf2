#!/usr/bin/env bash
# From nothing to published MTP heads, CLP, gate and cycle lengths, on a machine with Python 3.10 or newer:
#
#     TO=you/qwen2.5-1.5b-clp HF_TOKEN=hf_… scripts/train_addons.sh
#
# Run again after an interruption, it goes on where it was. Without TO, or without a token, nothing is published.
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL=${MODEL:-Qwen2.5-1.5B-Instruct}      # a chat model: a catalog name, a folder or a hub id
MINUTES=${MINUTES:-60}                     # of the run after installing and downloading; it says what each stage takes
DATA=${DATA:-}                             # a .jsonl file of messages, in place of conversations that the model writes itself
QUANTIZATION=${QUANTIZATION:-none}         # nf4 where the model does not fit otherwise
OUT=${OUT:-runs/addons}
TO=${TO:-}                                 # owner/name on the hub
LICENSE=${LICENSE:-apache-2.0}
INSTALL=${INSTALL:-yes}                    # no: the packages are there already

if [ "$INSTALL" = yes ]; then
  python -m venv .venv
  . .venv/bin/activate
  pip install -q -r requirements.txt
fi

data=()
if [ -n "$DATA" ]; then data=(--data "$DATA"); fi
python -m dmtd_demo train all --model "$MODEL" --quantization "$QUANTIZATION" --minutes "$MINUTES" --output "$OUT" ${data[@]+"${data[@]}"}
python -m dmtd_demo compare --model "$MODEL" --quantization "$QUANTIZATION" --addons "$OUT/addons" --panel ar --panel mtp-verified --panel clp --max-new-tokens 64 --prompt "Explain in three sentences why the sky is blue."

if [ -z "$TO" ]; then
  echo "The add-ons lie in $OUT/addons. Nothing was published: TO names no repository."
elif python -c "import sys; from huggingface_hub import get_token; sys.exit(get_token() is not None)"; then
  echo "The add-ons lie in $OUT/addons. Nothing was published: there is no token; set HF_TOKEN, or log in with \`hf auth login\`, and run this again."
else
  python -m dmtd_demo push "$OUT/addons" --to "$TO" --license "$LICENSE"
fi
echo "Done after $((SECONDS / 60)) minutes."
