from tests.loops.conftest import _quiet

__all__ = ["_quiet"]
