"""What golden cases of each method need: how its model is built, its arrays named, its numbers found.

`METHODS` maps the name in a case's config.json ("algorithm", or "system") to the method.
"""

from __future__ import annotations

from tests.golden_methods.bases import Method
from tests.golden_methods.floq import FloqGolden
from tests.golden_methods.fql import FQLGolden
from tests.golden_methods.iql import IFQLGolden, IQLGolden
from tests.golden_methods.pac import PACGolden
from tests.golden_methods.q_transformer import QTransformerGolden
from tests.golden_methods.qc import QCGolden
from tests.golden_methods.rebrac import ReBRACGolden

METHODS: dict[str, type[Method]] = {
    "FQL": FQLGolden,
    "IFQL": IFQLGolden,
    "IQL": IQLGolden,
    "QC": QCGolden,
    "pac": PACGolden,
    "floq": FloqGolden,
    "q_transformer": QTransformerGolden,
    "ReBRAC": ReBRACGolden,
}
