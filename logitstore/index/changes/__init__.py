"""What changes the index: commits, compaction, un-committing, and an index made anew."""
