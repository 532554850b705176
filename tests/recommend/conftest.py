from __future__ import annotations

from tests.serve.conftest import bundle, predictor

__all__ = ["bundle", "predictor"]
