"""The recipe of `classroom`: a small Qwen3 trained from scratch with cyclical masking.

DMTD paper, arXiv 2510.11958, section 3.3; docs/methods.md, section 2.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dmtd_demo.backbone.qwen import Backbone
from dmtd_demo.backbone.split import Split
from dmtd_demo.models.addons import CollocationLengthPredictor, LateHeads, MTPHeads, save_addon
from dmtd_demo.training.clp import CAREFUL, length_loss, prefix_length
from dmtd_demo.training.cycles import LATE_K, random_cycles
from dmtd_demo.training.data import IGNORED, Batch, draw_taus
from dmtd_demo.training.heads import K, heads_loss
from dmtd_demo.training.loop import Lost, Progress, Recipe
from dmtd_demo.training.masking import autocast, cyclical_heads, masked_hidden

NAME = "classroom"
VOCABULARY = 2048
SPLIT = Split(layers=12, early=0, late=3, head_input="replace")
CONTEXT = 8192
SHARD_SIZE = "9MB"
# of the run: `ar` alone, until copying from the prompt has formed
AR_SHARE = 0.28
# share of the rows whose cycles change their length within the text, for `dmtd-adaptive` and
# `mixed`
VARIED = 0.15
# drawn for each row: a whole batch of one tau makes noisy updates
TAUS = {1: 0.1, 2: 0.3, 3: 0.3, 4: 0.2, 5: 0.03, 6: 0.07}
# the same recipe with every position a head: what the DMTD paper compares with
VANILLA = "classroom-vanilla"
# from this share of the run on, rows up to this length
CURRICULUM = ((0.0, 64), (0.1, 128), (0.3, 256), (0.6, 512))
# a run from given weights begins here in the schedule: longest rows, falling rates
BEGIN = 0.7
# weight of what is trained beside the backbone, from this share of the run on:
LOOKAHEAD = 0.2
LOOKAHEAD_SHARE = 0.5
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def longest_row(share: float) -> int:
    """Return the tokens of the longest row at this share of the run."""
    return [length for start, length in CURRICULUM if share >= start][-1]


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """Return a Qwen3 of about 10 million random parameters, its LM head tied."""
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=SPLIT.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=end,
        initializer_range=0.02,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # taken by its base class
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    with torch.no_grad():  # residual branches start small, as in GPT-2
        for name, p in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.mul_((2 * SPLIT.layers) ** -0.5)
    return model


class Joint(nn.Module):
    """The backbone and the add-ons that it is trained with *(ours)*.

    So its last hidden state knows more than the next token: MTP heads and predictors of how many of
    them are right, on full passes (heads, clp) and on late ones (late).
    """

    ADDONS = ("mtp_heads", "clp", "mixed")

    def __init__(
        self,
        model: PreTrainedModel,
        heads: MTPHeads | None = None,
        clp: CollocationLengthPredictor | None = None,
        late: LateHeads | None = None,
    ) -> None:
        super().__init__()
        hidden_size = model.config.hidden_size
        self.model = model
        self.heads = heads or MTPHeads(hidden_size, K)
        self.clp = clp or CollocationLengthPredictor(hidden_size, K)
        self.late = late or LateHeads(hidden_size, LATE_K)

    def lookahead(
        self, backbone: Backbone, hidden: Tensor, targets: Tensor, at_head: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of heads and predictors, full and late passes, and their accuracies.

        hidden [rows, n, hidden]; targets, at_head [rows, n].
        """
        total = hidden.new_zeros(())
        figures: dict[str, float] = {}
        for where, read, heads, lengths in (
            ("", at_head, self.heads, self.clp),
            ("late_", ~at_head, self.late.heads, self.late.lengths),
        ):
            read = read & (targets != IGNORED)
            if read.any():
                lost, accuracies, right = heads_loss(backbone, heads, hidden, targets, read)
                lost_lengths, length_figures = length_loss(
                    lengths, hidden[read], prefix_length(right)
                )
                total = total + lost + lost_lengths
                figures |= {
                    where + name: value
                    for name, value in (accuracies | {"clp": length_figures["acc"]}).items()
                }
        return total, figures


def recipe(
    joint: Joint,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    compiled: bool = False,
    begin: float = 0.0,
    vanilla: bool = False,
) -> Recipe[Batch]:
    """Return the recipe of the model and what is trained beside it.

    compiled: by torch.compile, which needs a C++ compiler; a third faster after some 20 s for each
    row length. begin: see loop.Recipe. vanilla: no cycles.
    """
    model = joint.model
    backbone = Backbone(model)
    if compiled:
        backbone.compile_layers()
    rng = random.Random(f"tau:{seed}")

    def loss(batch: Batch, progress: Progress) -> Lost:
        cyclical = not vanilla and progress.share >= AR_SHARE
        tau = draw_taus(rng, TAUS, batch.ids) if cyclical else 1
        short = batch.ids.shape[1] <= 256  # on CPU the fused backward took a third of a whole step
        with autocast(batch.ids.device), sdpa_kernel(SDPBackend.MATH if short else _FUSED):
            at_head = cyclical_heads(batch.phase, tau)
            if cyclical:
                varied = torch.tensor(
                    [[rng.random() < VARIED] for _ in batch.ids], device=batch.ids.device
                )
                at_head = torch.where(varied, random_cycles(rng, batch.phase)[0], at_head)
            hidden = masked_hidden(backbone, SPLIT, batch.ids, at_head)
            logits = backbone.logits(hidden)
            own = F.cross_entropy(
                logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED
            )
            if progress.share < LOOKAHEAD_SHARE:
                return own, {}
            ahead, figures = joint.lookahead(backbone, hidden, batch.targets, at_head)
        return own + LOOKAHEAD * ahead, {"own": own.item(), **figures}

    def save(output: Path) -> None:
        save_model(model, tokenizer, output / "model")
        save_addon(
            output / "model" / "addons", "mtp_heads", joint.heads, NAME, backbone.hidden_size
        )
        save_addon(
            output / "model" / "addons",
            "clp",
            joint.clp,
            NAME,
            backbone.hidden_size,
            threshold=CAREFUL,
        )
        save_addon(
            output / "model" / "addons",
            "mixed",
            joint.late,
            NAME,
            backbone.hidden_size,
            threshold=CAREFUL,
        )

    return Recipe(
        VANILLA if vanilla else NAME,
        joint,
        loss,
        save,
        learning_rate=3e-3,
        muon_rate=2e-3,
        decay=0.5,
        begin=begin,
    )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder in Hugging Face format that plain transformers loads as a Qwen3.

    bfloat16, sharded, with the split in config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: t.detach().to(torch.bfloat16).contiguous()
        for name, t in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(
        dtype="bfloat16",
        num_encoding_layers=SPLIT.early,
        num_thinking_layers=SPLIT.middle,
        num_decoding_layers=SPLIT.late,
        mtp_horizon=4,
        dmtd_head_input=SPLIT.head_input,
        trained_length=CURRICULUM[-1][1],
    )
    path.write_text(json.dumps(config, indent=2) + "\n")
