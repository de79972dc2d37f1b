"""The same captions through datatrove's filters of quality and repetition; run by `benchmarks.score --datatrove`.

Needs an environment of its own with `datatrove[processing]` and `spacy`, and nothing of this package. Reads one caption
a line, prints seconds of processor time, captions and how many each filter keeps as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    texts = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(min_doc_words=4, max_doc_words=180),
        FineWebQualityFilter(),
    ]
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    for each in filters:  # word tokenizers are loaded with the first text
        each.filter(documents[0])
    seconds, kept = {}, {}
    for each in filters:
        start = time.process_time()
        name = type(each).__name__
        kept[name] = sum(each.filter(document) is True for document in documents)
        seconds[name] = time.process_time() - start
    print(json.dumps({"version": version("datatrove"), "captions": len(texts), "seconds": seconds, "kept": kept}))


if __name__ == "__main__":
    main()
