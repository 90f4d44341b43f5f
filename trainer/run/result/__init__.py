"""What a run leaves for people: its figures in words and pictures, and the card of the model."""
