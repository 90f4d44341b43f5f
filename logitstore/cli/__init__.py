"""The command line of the store: `python -m logitstore`, installed as `penumbra-store`."""
