"""The page that shows a store: progress of its job, its sequences, and the teacher's distributions."""
