"""CMA-CLIP: image and text together, for classification (arXiv 2112.03562).

Sequence-wise attention over the patches and tokens of a CLIP model, modality-wise attention and a
classifier for every task, and training in three stages. `python -m examples.studies.cma_clip`
trains one model, `python -m examples.studies.cma_clip.study` compares it with and without its
parts.
"""
