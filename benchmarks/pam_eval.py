"""What PAM's streaming evaluation gives to its own references, and to those of other events.

    python benchmarks/pam_eval.py ../shared/data/pam_eval/input_full.jsonl

Three sets of answers: the references themselves, those of the next event, those of a random other event. Each is
scored with the PTB tokenizer, and as PAM's script scores (raw texts).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from model.answers import Answer
from model.evaluate import score
from model.pam_stream import Event, read_events


def answers(events: list[Event], said: list[str]) -> list[Answer]:
    """The events with these texts as answers."""
    made = []
    for at, (event, text) in enumerate(zip(events, said, strict=True)):
        texts = {"wanted": event.wanted, "predicted": text, "label": "", "source": "pam_eval"}
        place = {"row": at, "media": event.video, "target": event.target, "event_index": at}
        made.append(Answer(task="stream", language="en", **texts, **place))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    events = read_events(parser.parse_args().file)
    own = [event.wanted for event in events]
    strangers = own[:]
    random.Random(0).shuffle(strangers)
    print(f"{len(events)} events of {len({e.target for e in events})} targets")
    for name, said in (("themselves", own), ("next event", own[1:] + own[:1]), ("random event", strangers)):
        for published in (False, True):
            found = score(answers(events, said), name, similarity=not published, published=published).overall
            shown = "  ".join(f"{key} {value:.4f}" for key, value in found.items() if not key.endswith("_words"))
            print(f"{name:13} {'published' if published else 'corrected'}  {shown}")


if __name__ == "__main__":
    main()
