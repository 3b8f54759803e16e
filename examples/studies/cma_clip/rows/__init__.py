"""Rows that CMA-CLIP's tables lack, on emoji: `python -m examples.studies.cma_clip.rows`.

One modality alone, prompts of the class names, noise in the images beside noise in the texts, and
captions that a class name is put into (the paper's Table 5).
"""
