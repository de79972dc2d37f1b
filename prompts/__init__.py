"""Teacher prompts: Markdown files with front matter, a loader, and the hash that stands for a prompt in every row."""

from prompts.loader import Prompt, PromptError, Turns, for_task, load, prompt_ids

__all__ = ["Prompt", "PromptError", "Turns", "for_task", "load", "prompt_ids"]
