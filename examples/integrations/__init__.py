"""The losses in other libraries' trainers, in few lines."""
