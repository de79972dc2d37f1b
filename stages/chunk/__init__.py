"""Chunk: masklets cut into events for streaming captions."""

from stages.chunk.config import ChunkConfig
from stages.chunk.stage import ChunkStage, ChunkUnit, build_chunk

__all__ = ["ChunkConfig", "ChunkStage", "ChunkUnit", "build_chunk"]
