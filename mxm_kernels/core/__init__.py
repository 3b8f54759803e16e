"""From arguments to a number: arguments -> Batch -> operator -> Rows -> formula -> weighted sum."""
