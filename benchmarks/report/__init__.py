"""Results: their one form, the page, the quotes, the regression check."""
