"""The recipe of `classroom-hybrid`: a small Qwen3.5 and its native MTP module, trained together.

Cyclical masking as in `classroom` (DMTD paper, section 3.3); the MTP module at every depth that it
drafts at, fed with its own states and the true tokens, and attending over what it will attend over
when it decodes; then a Collocation-Length Predictor for it (CLP paper). The learning rate follows
the clock: it has fallen to zero when the time is up, however fast the machine.
"""
