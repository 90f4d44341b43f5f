"""The command line of the store: `penumbra store`, installed as `penumbra-store`."""
