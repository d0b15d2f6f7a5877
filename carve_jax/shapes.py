"""One glossary of dimensions, used in every signature through jaxtyping.

| name | meaning                                                                          |
|------|----------------------------------------------------------------------------------|
| B    | batch: rows of tokens                                                            |
| T    | time: tokens in a row                                                            |
| D    | model width                                                                      |
| H    | key heads (queries and keys)                                                     |
| N    | value heads; a multiple of H, and equal to it unless values are grouped          |
| K    | channels of a key head                                                           |
| V    | channels of a value head                                                         |
| Kg   | channels of a key-axis gate: K (a gate a channel) or 1 (a gate a head)           |
| Vg   | channels of a value-axis gate: V or 1                                            |
| R    | rank of the content gate                                                         |
| W    | width of the short convolution                                                   |
| M    | rank of Mamba-3's MIMO                                                           |
| J    | rotated pairs of key channels                                                    |
| A    | query heads of softmax attention                                                 |
| G    | key/value heads of softmax attention                                             |
| E    | channels of an attention head                                                    |
| S    | slots of an attention cache                                                      |

Inside the ops, C is the number of tokens of a tile and L that of a gate chunk.
"""

from jaxtyping import Array, Bool, Float, Float32, Int, Int32

__all__ = ["Array", "Bool", "Float", "Float32", "Int", "Int32"]
