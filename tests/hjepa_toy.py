"""A network of toy size for tests of the hierarchical JEPA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.models.hjepa import HJEPA, HJEPAConfig, init_variables
from jaxcomp.models.vit import ViTConfig

SIDE, PATCH = 16, 4  # a grid of 4 x 4
TOKENS = 16


def config(encoder=None, **options):
    sizes = {"image_size": SIDE, "patch": PATCH, "width": 16, "depth": 1, "heads": 2}
    options = {"predictor_depth": 1, "predictor_heads": 2, "num_hierarchies": 3} | options
    return HJEPAConfig(ViTConfig(**(sizes | (encoder or {}))), **options)


@functools.lru_cache(maxsize=32)
def network(cfg):
    """(module, variables), drawn without compiling anything; the target is another encoder."""
    model = HJEPA(cfg)
    shapes = jax.eval_shape(functools.partial(init_variables, model), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if str(path[-1].key).startswith("scale") else 0.0
        return jnp.asarray((centre + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32))

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def compiled(function, **options):
    """`jax.jit` that compiles fast code slowly for nothing: the networks are tiny."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def images(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, SIDE, SIDE, 3)).astype(np.float32))


def mask(*rows):
    """bool [B, 16] with the given patches hidden."""
    out = np.zeros((len(rows), TOKENS), bool)
    for row, hidden in enumerate(rows):
        out[row, list(hidden)] = True
    return out
