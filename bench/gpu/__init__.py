"""The phases of ``bench/gpu.sh``, one module each."""
