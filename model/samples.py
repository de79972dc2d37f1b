"""Captions generated in the middle of training, to see with one's own eyes what is learned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.corpus import CorpusError
from model.features import look
from model.generate import GenerationConfig, Generator
from model.pam import Pam
from model.plan import weights
from model.progress import log
from model.templates import IGNORE

if TYPE_CHECKING:
    from model.train import Trainer

_TOKENS = 64


@torch.no_grad()
def sample_captions(trainer: Trainer, pam: Pam, count: int) -> list[dict[str, Any]]:
    """Greedy answers for `count` captions spread over what is learned, each beside the caption it should give.

    `pam` is the trainer's model, whole. Captions that cannot be read are left out.
    """
    index = trainer.corpus.index
    learned = np.flatnonzero(weights(index, trainer.config.mixture) > 0).tolist()
    rows = [learned[at * len(learned) // count] for at in range(min(count, len(learned)))]
    # the published labels mark the question too: where the answer begins only ours tell
    data = trainer.data([])
    data.held, data.reading = None, replace(data.reading, published_labels=False)
    answer = Generator(pam, trainer.tokenizer, GenerationConfig(max_new_tokens=_TOKENS, fast=False))
    pam.eval()
    out = []
    for row in rows:
        try:
            sight, ids, labels = data.example(row, seed=row)
        except CorpusError as error:
            log.warning("no sample of caption %d: %s", row, error)
            continue
        video = bool(index["video"][row])
        shown = look(trainer.sam, [sight], video, pam.config.video_frames, trainer.cache)
        spot = next(at for at, label in enumerate(labels) if label != IGNORE)
        wanted = trainer.tokenizer.decode([i for i in labels if i != IGNORE], skip_special_tokens=True)
        text = answer.after(video, shown.embed, shown.tokens, [ids[:spot]])[0]
        row_out = {"step": trainer.progress.step, "row": row, "task": index["task"][row]}
        out.append(row_out | {"text": text, "wanted": wanted})
    pam.train()
    return out
