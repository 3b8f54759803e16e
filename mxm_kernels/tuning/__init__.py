"""``python -m mxm_kernels tune``: measures launch settings of the Triton kernels on this GPU.

- ``workload`` makes a batch for a cell of the settings table and runs one phase of it.
- ``check`` holds what a phase gives to float64.
- ``compile`` compiles and checks candidates in processes of their own (``worker``).
- ``race`` times launches interleaved.
- ``tune`` does all of it for some cells, and ``command`` is the command line.
"""
