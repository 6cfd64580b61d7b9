"""Writes a page that runs networks in a browser.

    python tools/web.py                                 the embedded network, in FP32 and at 4 bits
    python tools/web.py ARTIFACT ... [--out FILE]       classifiers of your own; the others are compared with the first

Needs emscripten (Debian: apt install emscripten cmake). The page is one file, which loads nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visq.errors import VisqError
from visq.web import PAGE, write_demo, write_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path, metavar="ARTIFACT")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    try:
        page = write_page(arguments.artifacts, arguments.out) if arguments.artifacts else write_demo(arguments.out)
    except VisqError as error:
        sys.exit(f"web: {error}")
    print(f"{page.path}: {page.bytes:,} bytes, networks of {', '.join(f'{size:,}' for size in page.networks)} bytes")


if __name__ == "__main__":
    main()
