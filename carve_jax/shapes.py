"""One glossary: dimensions, used in every signature through jaxtyping, and words for cuts of time.

| name | meaning                                                                          |
|------|----------------------------------------------------------------------------------|
| B    | batch: rows of tokens                                                            |
| T    | time: tokens in a row                                                            |
| D    | model width                                                                      |
| H    | key heads (queries and keys)                                                     |
| N    | value heads; a multiple of H, and equal to it unless values are grouped          |
| K    | channels of a key head                                                           |
| V    | channels of a value head                                                         |
| Kg   | channels of the decay: K (one per channel) or 1 (one per head)                   |
| Ke   | channels of the erase gate: K or 1, whatever the decay's are                     |
| Vg   | channels of a value-axis gate: V or 1                                            |
| R    | rank of the content gate                                                         |
| W    | width of the short convolution                                                   |
| M    | rank of Mamba-3's MIMO                                                           |
| J    | rotated pairs of key channels (Mamba-3)                                          |
| A    | query heads of softmax attention                                                 |
| G    | key/value heads of softmax attention                                             |
| E    | channels of an attention head                                                    |
| S    | slots of an attention cache                                                      |

Inside the ops also:

| name   | meaning                                                                        |
|--------|--------------------------------------------------------------------------------|
| C      | tokens of a tile                                                               |
| L      | tokens of a gate chunk                                                         |
| tiles  | tiles of a row, or of a group of them                                          |
| chunks | gate chunks of a row, or the most that meet in a tile                          |
| X      | channels of any kind                                                           |
| laid   | tokens of a row with null tokens among them, as `Layout` lays them out         |
| rest   | further axes, any number of them                                               |

Words, each with one meaning everywhere:

* tile: C tokens that one WY system covers, the chunk of other libraries. `chunk_size` (`chunked`)
  and `Tiles.chunk` (kernels) are its length; it changes rounding and nothing else.
* gate chunk: L = `gate_chunk` tokens whose erase gates see one content. It belongs to the model.
  "Chunk" alone is short for it, except in the terms of the field that have no other word:
  `chunk_size`, `Tiles.chunk`, `chunked`, inter-chunk scan, where it is the tile.
* group: tiles of which `chunked` computes at once what does not depend on the state.
* span: 64 tokens of a head, whole tiles: what one program of the kernels computes where the work is
  parallel over the sequence.
* part: of the sequence, whole spans and gate chunks: what of the tiles the kernels hold at once.
* block: of key or value channels, where a program of the kernels has not all of them.
* scan: the inter-chunk scan, which carries the state from tile to tile in order; backward, its
  gradient from the last tile to the first. Launches, programs and `Tiles.solve` are recorded as
  "walk" and "walk_back" in budgets, limits and dated results, and keep that name there.
* segment: a run of tokens of one document in a row.
* shard: the tokens of a row that one device holds, where the sequence is sharded over devices.
* stride: tokens from the start of one gate chunk to that of the next, as kernels lay them out.
"""

from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Shaped

__all__ = ["Array", "Bool", "Float", "Float32", "Int", "Int32", "Shaped"]
