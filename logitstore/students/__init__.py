"""What a student leaves beside its model for the pages of this package."""
