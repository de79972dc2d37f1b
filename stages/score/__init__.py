"""Scores: facts about captions and masks, one stage a group of rules; `stages.decide` says what becomes of them."""
