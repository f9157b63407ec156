"""The folder of a run: what is written, read, checked and locked there. Nothing of training, tasks or models is known here."""
