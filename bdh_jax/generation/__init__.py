"""Generation: sampling with a state that is carried, and that state in a file."""
