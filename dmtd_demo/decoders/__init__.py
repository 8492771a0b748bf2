"""The registry of decoders, which page, command line and tests iterate.

A new decoder is one file and one line here.
"""

from typing import Any

from dmtd_demo.decoders.ar import Autoregressive
from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Steps, Token
from dmtd_demo.decoders.clp import CollocationLength
from dmtd_demo.decoders.dmtd import DirectMultiToken
from dmtd_demo.decoders.dmtd_adaptive import AdaptiveCycles
from dmtd_demo.decoders.dmtd_spec import SelfSpeculative
from dmtd_demo.decoders.mixed import Mixed
from dmtd_demo.decoders.mtp_gate import GatedHeads
from dmtd_demo.decoders.mtp_heads import HeadsOnly
from dmtd_demo.decoders.mtp_lookup import LookupOrHeads
from dmtd_demo.decoders.mtp_native import NativeHead
from dmtd_demo.decoders.mtp_native_verified import VerifiedNativeHead
from dmtd_demo.decoders.mtp_verified import VerifiedHeads
from dmtd_demo.decoders.prompt_lookup import PromptLookup

DECODERS: dict[str, type[Decoder[Any]]] = {
    decoder.name: decoder
    for decoder in (
        Autoregressive,
        DirectMultiToken,
        SelfSpeculative,
        AdaptiveCycles,
        CollocationLength,
        HeadsOnly,
        GatedHeads,
        VerifiedHeads,
        NativeHead,
        VerifiedNativeHead,
        Mixed,
        PromptLookup,
        LookupOrHeads,
    )
}

__all__ = ["DECODERS", "Decoder", "Options", "Pass", "Step", "Steps", "Token"]
