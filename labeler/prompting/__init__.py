"""What the teacher sees of a record: tokenizers, chat templates, conversations to token ids."""
