"""Names of the ways to choose actions; without imports, so that the command line reads them quickly."""

from typing import Literal

Extraction = Literal["fql", "implicit", "behaviour_flow"]
