"""The MXM-CLR paper's ablation (its Table 5) on real data: `python -m examples.studies.ablation`.

Frozen encoders and a linear head for each side, so that every row of the table is trained on
five splits, with its own hyper-parameters, in minutes on two CPU cores.
"""
