"""A faithful fake of the Mistral API, for a demo without a key, for our tests and for yours.

    async with Simulator(seed=1) as simulator:
        simulator.script(Behaviour(cut_after=3))          # how the next call goes
        …                                                 # any client, at simulator.url
        print(simulator.totals().completion_tokens)

Answers are the same for the same seed and request. Faults are asked for by `Behaviour`, in a script or in the
request header `x-simulator: cut_after=3, latency=0.1`. The ledger says what every call would have cost.
"""

from tramontane.simulator.behaviour import Behaviour
from tramontane.simulator.ledger import Call, Totals
from tramontane.simulator.server import Simulator, serve

__all__ = ["Behaviour", "Call", "Simulator", "Totals", "serve"]
