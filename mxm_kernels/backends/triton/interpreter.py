"""A mend of Triton's interpreter, for the CPU only.

The interpreter of Triton 3.6 makes an index of a kernel's number by ``int`` of a NumPy array with
one element, which NumPy 2.5 refuses. Later ones take the element out first, and so does this.
"""

from __future__ import annotations

from triton.runtime import interpreter


def mend() -> None:
    """Let a kernel's number be the bound of its ``range``, whichever NumPy is installed."""
    patch = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended
