"""What ``bench/gpu.sh`` runs in the first minutes of a GPU, phase by phase."""
