"""Loading, training steps and what students lose."""
