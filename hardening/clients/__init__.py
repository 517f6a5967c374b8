"""What each client has learnt, and alarms that mean something.

`table` keeps a packed row for each client; `entropy` reads numbers off it; `evidence` is the bet against a client's
innocence and `baseline` what it is calibrated by; `fingerprints` finds near duplicates; `reservoir` and `fleet` look
at what takes more than one row, or more than one client. All but `table` are functions of their arguments.
"""

from hardening.clients.baseline import Baseline
from hardening.clients.entropy import code_length_bits, label_entropy_bits
from hardening.clients.table import ANONYMOUS, LONGEST_NAME, POOLED, Clients

__all__ = [
    "ANONYMOUS",
    "LONGEST_NAME",
    "POOLED",
    "Baseline",
    "Clients",
    "code_length_bits",
    "label_entropy_bits",
]
