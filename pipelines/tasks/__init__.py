"""The task that is learnt: labels, examples, prompts with their parser, heuristics. Nothing of files on disk or models."""
