"""The subcommands of `penumbra label` that make prompts or choose among them and their responses."""
