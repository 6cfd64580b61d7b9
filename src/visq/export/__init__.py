"""An artifact's program in the formats of other runtimes."""

from visq.export.artifact import FORMATS, Exported, export
from visq.export.runtimes import RuntimeAgreement

__all__ = ["FORMATS", "RuntimeAgreement", "Exported", "export"]
