"""Analysis: what is asked of a trained model."""
