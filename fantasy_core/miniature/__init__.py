"""The miniature: a tiny world with known truth, in which every stage of the method runs in minutes on a CPU.

`world` draws people, voices and clips; `render` is its picture, `speech` its sound; `codec` stands for the VAE; `judge`
reads the truth back out of any video; `components` is the shipped model as `animate` wants it.
"""

from .components import load_components

__all__ = ["load_components"]
