"""Replay: what a frozen base computes alike in every step is computed once.

For a site in layer L at position p of a causal network, everything below L and everything left of p is the same
whatever is swapped in. For each text the store keeps the hidden states that enter the first layer to be run, at the
positions from the leftmost site on, the keys and values of the positions before it, and the activations at the sites.
A step runs the layers above L at the positions ≥ p, by the network's own code.
"""

from iitkit.models.replay.prepared import ReplayPrepared
from iitkit.models.replay.runner import Replay, make_runner
from iitkit.models.replay.store import Store
from iitkit.models.replay.stores import Keeping

__all__ = ["Keeping", "Replay", "ReplayPrepared", "Store", "make_runner"]
