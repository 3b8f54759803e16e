"""Studies that answer one question each and are not part of a benchmark run."""
