"""A report of one trained model: sections that ask it something, each with a null that could have said no."""
