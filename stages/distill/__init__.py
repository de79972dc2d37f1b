"""Distil: a teacher's captions of every region, task and language."""

from stages.distill.build import build_distill
from stages.distill.config import CaptionsConfig

__all__ = ["CaptionsConfig", "build_distill"]
