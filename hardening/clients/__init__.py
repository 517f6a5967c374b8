"""What each client has learnt, and alarms that mean something.

`table` keeps a packed row for each client; `entropy` reads numbers off it; `evidence` is the bet against a client's
innocence, `window` looks at a hundred questions at a time, `baseline` is what both are calibrated by, with the `means`
that ordinary clients stay below; `fingerprints` finds near duplicates; `reservoir` and `fleet` look
at what takes more than one row, or more than one client. All but `table` and the index of `fingerprints` are functions
of their arguments.

What none of it can see: a thief who asks what honest clients ask, as they would ask it. No observer can (Karchmer 2023,
"Theoretical limits of provable security against model extraction by efficient observational defenses"); what is left
against him is a budget.
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
