"""`visq report`: one self-contained HTML page about quantized networks."""

from typing import TYPE_CHECKING

from visq._lazy import lazy

if TYPE_CHECKING:
    from visq.report.document import artifact_document, comparison_document
    from visq.report.page import render
    from visq.report.settings import Settings
    from visq.report.writing import write

__all__ = ["write", "artifact_document", "comparison_document", "render", "Settings"]

__getattr__ = lazy(
    __name__,
    {
        "write": "writing",
        "artifact_document": "document",
        "comparison_document": "document",
        "render": "page",
        "Settings": "settings",
    },
)
