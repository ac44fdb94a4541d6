"""The lab: cards, configs, runs, verdicts, controls, records and tracking. It knows no paper and no domain.

`common.lab.runtime` is all that an experiment sees; it needs numpy alone, so nothing is imported here until asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.lab.bakeoff import Bakeoff
    from common.lab.session import Lab

__all__ = ["Bakeoff", "Lab"]


def __getattr__(name: str) -> Any:
    if name == "Lab":
        return import_module("common.lab.session").Lab
    if name == "Bakeoff":
        return import_module("common.lab.bakeoff").Bakeoff
    raise AttributeError(f"module 'common.lab' has no attribute {name!r}")
