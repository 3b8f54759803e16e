"""Fine-tune a dual encoder with the MFH loss; `python -m examples.finetune` runs it."""
