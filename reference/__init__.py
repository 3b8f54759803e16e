"""Dense float64 transcriptions of the losses, straight from the papers: the oracle of the tests."""
