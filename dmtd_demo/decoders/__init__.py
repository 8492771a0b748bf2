"""The registry of decoders. A new decoder is one file and one line here; page, command line and tests iterate it."""
from collections import ChainMap

from dmtd_demo.decoders import panel as _panel
from dmtd_demo.decoders.ar import Autoregressive
from dmtd_demo.decoders.base import Decoder, Options, Pass, Step, Token
from dmtd_demo.decoders.clp import CollocationLength
from dmtd_demo.decoders.dmtd import DirectMultiToken
from dmtd_demo.decoders.dmtd_adaptive import AdaptiveCycles
from dmtd_demo.decoders.dmtd_spec import SelfSpeculative
from dmtd_demo.decoders.mixed import Mixed
from dmtd_demo.decoders.mtp_gate import GatedHeads
from dmtd_demo.decoders.mtp_heads import HeadsOnly
from dmtd_demo.decoders.mtp_verified import VerifiedHeads
from dmtd_demo.decoders.panel import PanelSpec
from dmtd_demo.decoders.prompt_lookup import PromptLookup
from dmtd_demo.decoders.remote import Remote

DECODERS: dict[str, type[Decoder]] = {decoder.name: decoder for decoder in (
    Autoregressive,
    DirectMultiToken,
    SelfSpeculative,
    AdaptiveCycles,
    CollocationLength,
    HeadsOnly,
    GatedHeads,
    VerifiedHeads,
    Mixed,
    PromptLookup,
)}
PANELS: ChainMap[str, type[Decoder]] = ChainMap({Remote.name: Remote}, DECODERS)   # all that a panel can be


def parse_panel(text: str) -> PanelSpec:
    """`decoder` or `decoder:name=value,name=value` to a panel; raises UserError."""
    return _panel.parse_panel(text, PANELS)


def make_panel(name: str, pairs: list[tuple[str, str]]) -> PanelSpec:
    """A panel from a decoder's name, or `remote`, and its options in text; raises UserError."""
    return _panel.make_panel(name, pairs, PANELS)


def make_decoder(panel: PanelSpec) -> Decoder:
    """The decoder of a panel, its options not yet resolved against a model."""
    cls = PANELS[panel.decoder]
    return cls(cls.Options(**panel.options))


__all__ = ["DECODERS", "PANELS", "Decoder", "Options", "PanelSpec", "Pass", "Remote", "Step", "Token", "make_decoder", "make_panel", "parse_panel"]
