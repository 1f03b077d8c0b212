"""Remake `sample.jsonl` from the human-rated sentences that come with VADER.

    pip download --no-deps --no-binary :all: vaderSentiment==0.5
    unzip vaderSentiment-0.5.zip && tar xzf vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz
    python data/vader/prepare.py hutto_ICWSM_2014

Every 150th movie sentence and every 50th tweet whose mean rating, from -4 to 4, is further than 0.5 from 0. The label
is its sign; the text is as it was.
"""

import json
import sys
from pathlib import Path

SOURCES = {"movieReviewSnippets_GroundTruth.txt": 150, "tweets_GroundTruth.txt": 50}


def main(folder: Path) -> None:
    """Write the sample beside this file."""
    out = []
    for name, each in SOURCES.items():
        lines = (folder / name).read_text(encoding="latin-1").splitlines()
        rated = [line.split("\t", 2)[1:] for line in lines]
        rated = [(float(score), text) for score, text in rated if abs(float(score)) > 0.5]
        out += [
            {"text": text, "label": "positive" if score > 0 else "negative"}
            for score, text in rated[::each]
        ]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in out]
    Path(__file__).with_name("sample.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
