"""Arguments of the commands, by what the commands do."""
