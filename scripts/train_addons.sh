#!/usr/bin/env bash
# From nothing to published CLP heads, on a machine with one GPU and Python 3.10 or newer:
#
#     TO=you/qwen2.5-1.5b-clp HF_TOKEN=hf_… scripts/train_addons.sh
#
# Run again after an interruption, it goes on where it was. Without TO, or without a token, nothing is published.
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL=${MODEL:-Qwen2.5-1.5B-Instruct}                        # a catalog name, a folder or a hub id
DATA=${DATA:-hf:HuggingFaceH4/ultrachat_200k:train_sft}      # whose prompts the model answers itself; or a .jsonl file of messages
ROWS=${ROWS:-1500}                                           # how many of them
HEADS_STEPS=${HEADS_STEPS:-2000}
CLP_STEPS=${CLP_STEPS:-1000}
QUANTIZATION=${QUANTIZATION:-none}                           # nf4 where the model does not fit otherwise
OUT=${OUT:-runs/addons}
TO=${TO:-}                                                   # owner/name on the hub
LICENSE=${LICENSE:-apache-2.0}
INSTALL=${INSTALL:-yes}                                      # no: the packages are there already

# How long it should take: nobody has timed it, this is arithmetic from assumptions, for a GPU like an A10G, an L4 or an RTX 4090 and a model of 1.5 B parameters.
TOKENS_PER_SECOND=${TOKENS_PER_SECOND:-40}    # of ar, one answer at a time in bfloat16: what `python -m dmtd_demo bench --model … --panel ar` prints
ANSWER=200                                    # tokens of an answer, at most 256
ROWS_PER_SECOND=10                            # through the whole model once: for heads, for clp, and a tenth of them to choose the threshold
HEADS_PER_SECOND=10                           # updates: 256 positions, 4 heads, 151,936 tokens of vocabulary
CLP_PER_SECOND=100
SETTING_UP=600                                # seconds to install and to download some 3 GB each
answers=$((ROWS * ANSWER / TOKENS_PER_SECOND))
updates=$((ROWS * 3 / ROWS_PER_SECOND + HEADS_STEPS / HEADS_PER_SECOND + CLP_STEPS / CLP_PER_SECOND))
echo "About $(((SETTING_UP + answers + updates + 59) / 60)) minutes by assumption: $(((SETTING_UP + 59) / 60)) to install and download, $(((answers + 59) / 60)) for $ROWS answers at $TOKENS_PER_SECOND tokens/s, $(((updates + 59) / 60)) to train."

if [ "$INSTALL" = yes ]; then
  python -m venv .venv
  . .venv/bin/activate
  pip install -q -r requirements.txt "datasets>=4,<6"
fi

train() {   # recipe, updates
  local resume=()
  if [ -e "$OUT/checkpoint/$1.safetensors" ]; then resume=(--resume); fi
  python -m dmtd_demo train "$1" --model "$MODEL" --quantization "$QUANTIZATION" --data "$DATA" --own-answers --max-rows "$ROWS" --max-steps "$2" --output "$OUT" "${resume[@]}"
}
train heads "$HEADS_STEPS"
train clp "$CLP_STEPS"
python -m dmtd_demo compare --model "$MODEL" --quantization "$QUANTIZATION" --addons "$OUT/addons" --panel ar --panel clp --max-new-tokens 64 --prompt "Explain in three sentences why the sky is blue."

if [ -z "$TO" ]; then
  echo "The add-ons lie in $OUT/addons. Nothing was published: TO names no repository."
elif python -c "import sys; from huggingface_hub import get_token; sys.exit(get_token() is not None)"; then
  echo "The add-ons lie in $OUT/addons. Nothing was published: there is no token; set HF_TOKEN, or log in with \`hf auth login\`, and run this again."
else
  python -m dmtd_demo push "$OUT/addons" --to "$TO" --license "$LICENSE"
fi
echo "Done after $((SECONDS / 60)) minutes."
