"""The engine in a browser: libvisq as WebAssembly, and a page around it."""

from visq.web.compiled import NEEDED, compile_library
from visq.web.demo import PAGE, write_demo
from visq.web.page import Page, write_page

__all__ = ["NEEDED", "PAGE", "Page", "compile_library", "write_demo", "write_page"]
