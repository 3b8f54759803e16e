"""Which rows show the same instance: what users build, and the pairs that follow from it.

``folds`` has the class for users, ``tables`` the sorted vectors that the operator reads,
``segments`` the sums over the positives of each row. Nothing here imports the rest of the
package, but for the checks.
"""

from mxm_kernels.folds.folds import Folds, Ids, as_ids, as_one_side

__all__ = ["Folds", "Ids", "as_ids", "as_one_side"]
