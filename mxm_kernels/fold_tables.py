"""Where version 0.1 had the tables of saved folds; they are in ``mxm_kernels.folds.tables``."""

from mxm_kernels.folds.tables import FoldTables

__all__ = ["FoldTables"]
