"""The text of a store's token ids: which tokenizer gives it, and what a person reads."""
