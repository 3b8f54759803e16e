"""From the statistics to a loss: directions, row formulas, draws, reductions."""
