"""The category of warnings about a store, which commands show as a line of their own."""


class StoreWarning(UserWarning):
    """What a reader should know of a store that it can read nevertheless."""
