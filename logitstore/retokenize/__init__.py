"""Labels of one tokenizer as labels of another: rows at shared byte boundaries, entries by their bytes."""
