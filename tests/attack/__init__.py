"""Attacks on the whole program: hostile files on the command line, and kills at chosen moments."""

import pytest

pytest.register_assert_rewrite("tests.attack.refusing")
