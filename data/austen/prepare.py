"""Remake the text files in this folder from Debian's `r-cran-janeaustenr`.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb DIR
    pip install rdata && python data/austen/prepare.py DIR

The package stores each novel as wrapped lines. A paragraph is joined to one line and paragraphs are
separated by one empty line; nothing else is changed.
"""

import bz2
import lzma
import re
import sys
import zlib
from pathlib import Path

import rdata

NOVELS = {
    "emma": "train",
    "mansfieldpark": "train",
    "northangerabbey": "train",
    "prideprejudice": "train",
    "sensesensibility": "train",
    "persuasion": "heldout",
}


def decompress(blob: bytes) -> bytes:
    """Undo R's lazy-load framing: 4 bytes of length, then one letter for the compressor."""
    kind, body = blob[4:5], blob[5:]
    if kind == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        return lzma.decompress(body, format=lzma.FORMAT_RAW, filters=filters)
    return bz2.decompress(body) if kind == b"2" else zlib.decompress(blob[4:])


def unwrap(lines: list[str]) -> str:
    """Join the lines of each paragraph."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip()) + "\n"


def main(package: Path, out: Path) -> None:
    """Write `out/{train,heldout}/NOVEL.txt`."""
    data = package / "usr/lib/R/site-library/janeaustenr/data"
    parsed = rdata.parser.parse_file(data / "Rdata.rdx")
    index = rdata.conversion.convert(parsed)["variables"]
    raw = (data / "Rdata.rdb").read_bytes()
    for novel, split in NOVELS.items():
        offset, length = map(int, index[novel])
        parsed = rdata.parser.parse_data(decompress(raw[offset : offset + length]))
        path = out / split / f"{novel}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unwrap(list(rdata.conversion.convert(parsed))), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
