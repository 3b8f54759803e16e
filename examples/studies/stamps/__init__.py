"""Recall in languages never trained on: `python -m examples.studies.stamps`.

538 photographs, each with captions in 59 languages. A text encoder and an image head are trained
on the captions of k languages, and images are looked up with captions in six others.
"""
