"""Other toolkits on the same models, feeds, meters and machine as ours.

`python -m aigc_compress.bench.peers MODEL… --json` makes every peer's INT8 form of a model and
measures all of them together. It stands above the library, as the command line does: it calls
`quantize` as a user would.
"""

from .contest import PeerOptions, PeersResult, compare_peers
from .table import PEERS, Peer

__all__ = ["PEERS", "Peer", "PeerOptions", "PeersResult", "compare_peers"]
