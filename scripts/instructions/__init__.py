"""Source tables of the corpus `instructions.jsonl`, one module a task type."""
