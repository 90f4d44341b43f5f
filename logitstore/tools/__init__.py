"""What looks at a whole store: inspect, verify, head."""
