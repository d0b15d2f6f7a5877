"""All the fields of a config, with the official recipe of Gated DeltaNet-2 (arXiv 2605.22791).

Other configs start from this one and say what they change.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from carve_jax.mixers.changes import SECTIONS


def get_config() -> ConfigDict:
    """A CARVE model of 768 × 12 on the text every Python carries."""
    config = ConfigDict()
    config.model = get_model()
    config.data = ConfigDict(
        {
            "source": "stdlib",  # stdlib | token_files | mixture | a synthetic task, such as mqar
            "parts": ("topics", "docstrings"),  # of stdlib; also sources
            "tokenizer": "bytes",  # of stdlib: bytes | bpe | the path of a tokenizer.json
            "vocab_size": 1024,  # of bpe and synthetic tasks
            "path": "",  # of token_files: what experiments.prepare_data wrote; of ruler: a text
            "paths": (),  # of mixture: directories of token files
            "weights": (),  # of mixture: share of the rows from each of the paths
            "verify": False,  # hold all token files against their SHA-256 before training
            "eval_fraction": 0.05,  # share of the documents held out, each whole
        }
    )
    config.optimizer = ConfigDict(
        {
            "peak_learning_rate": 4e-4,  # of AdamW, after the warm-up
            "warmup_fraction": 0.01,  # of the steps, linear
            "final_fraction": 0.1,  # of the peak, where the cosine ends
            "weight_decay": 0.1,  # not on A_log, dt_bias, biases and norm scales
            "beta1": 0.9,  # decay of the mean of the gradients
            "beta2": 0.95,  # decay of the mean of their squares
            "clip_norm": 1.0,  # largest norm of all gradients together
            "accumulate_steps": 1,  # parts a batch is taken in, to save memory
            "content_up_lr_factor": 1.0,  # of the learning rate, for CARVE's P_up alone
        }
    )
    # Devices by what they share: rows; rows and parameters; heads and MLP; tokens of a row.
    # -1: all the devices that are left.
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1})
    config.batch_size = 128  # rows; the official recipe has 0.5M tokens per batch
    config.sequence_length = 4096  # tokens of a row
    config.steps = 10_000  # in all, those of earlier processes included
    config.seed = 0  # of the initial parameters and the order of the data
    config.z_loss = 0.0  # weight of log(Z)²; PaLM takes 1e-4
    config.loss_chunk = 8192  # tokens whose float32 logits exist at once on a device
    config.eval_every = 500  # steps from one measurement of held-out data to the next
    config.log_every = 10  # steps from line to line of metrics.jsonl
    config.checkpoint_every = 500  # steps from one checkpoint to the next
    config.keep_checkpoints = 2  # the newest
    config.keep_every = 0  # also those whose step is a multiple of it; 0: none
    config.keep_best = 0  # also so many of lowest eval_loss
    config.log_norms_every = 0  # steps from line to line with the norms of every layer; 0: never
    config.profile_steps = (0, 0)  # first and last step to trace into WORKDIR/profile; (0, 0): none
    config.watchdog_seconds = 600.0  # say what a run waits for after so long; 0: never
    config.guard = ConfigDict(
        {
            # A spike lies above median + factor · spread (1.4826 · MAD) of the last steps.
            "loss_factor": 0.0,  # 0: not watched; 10 is a spike by any measure
            "grad_factor": 0.0,  # of the gradient norm before clipping
            "window": 100,  # steps looked back on
            "action": "skip",  # skip the update | rewind to the newest checkpoint | stop
            "limit": 10,  # spikes in a row, or rewinds to one checkpoint, that stop the run
        }
    )
    config.sample_prompt = "The "  # of the text that is written at the end
    config.sample_tokens = 256  # of that text; 0: none
    return config


def get_model() -> ConfigDict:
    """The model section: `carve_jax.LMConfig`'s fields and nothing else."""
    return ConfigDict(
        {
            "vocab_size": 257,  # 256 bytes and the separator between documents
            "d_model": 768,  # width of the model
            "layers": 12,  # each of a mixer and an MLP
            "pattern": ("carve",),  # mixers, repeated over the layers
            "mlp_dim": 2048,  # width inside an MLP
            "num_heads": 12,  # of values, in the gated delta mixers
            "num_key_heads": placeholder(int),  # of queries and keys; unset: num_heads
            "key_dim": 64,  # per head
            "value_dim": 64,  # per head
            "conv_width": 4,  # taps of the short convolutions
            "gates": unset("gates"),  # what all mixers have otherwise than their published gates
            "layer": unset("layer"),  # what all mixers have otherwise than their published layer
            "mimo_rank": 4,  # of mamba3_mimo
            "attention_heads": placeholder(int),  # of queries; unset: num_heads
            "attention_kv_heads": placeholder(int),  # unset: attention_heads
            "attention_head_dim": placeholder(int),  # unset: d_model / attention_heads
            "window": 2048,  # tokens that swa sees, the token itself included
            "rope_theta": 10000.0,  # base of the rotary embedding
            "norm_eps": 1e-5,  # of every RMSNorm
            "tie_embeddings": False,  # the output head is the embedding, transposed
            "remat": "none",  # none | full | dots | rule | rule_and_dots: see carve_jax/config.py
            "scan_layers": True,  # compile one repeat of the pattern and loop over it
            "compute_dtype": "bfloat16",  # float32 | bfloat16
            "implementation": placeholder(str),  # of the rule; unset: the best for the device
            "chunk_size": 64,  # tokens in a tile of the rule
        }
    )


def unset(section: str) -> ConfigDict:
    """A section of the model with all its fields, none of them set: a mixer's own hold.

    `carve_jax.GateSpec` and `carve_jax.LayerSpec` have these fields and say what they mean.
    """
    kinds = SECTIONS[section].kinds
    return ConfigDict({name: placeholder(kind) for name, kind in kinds.items()})
