"""The ways to choose actions; without imports, so that the command line is quick to read them."""

from typing import Literal

Extraction = Literal["fql", "implicit", "behaviour_flow"]
