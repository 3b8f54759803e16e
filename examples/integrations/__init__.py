"""The losses in other libraries' trainers, ten lines each."""
