"""Reference numbers of other implementations: reading them, and comparing ours with them."""

import importlib.util
import json
import types

import numpy as np


def read(folder, name, **more):
    """An oracle: its record, its arrays, the recipe that draws its weights, and `more`."""
    spec = importlib.util.spec_from_file_location("recipe", folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    meta = json.loads((folder / f"{name}.json").read_text())
    arrays = np.load(folder / f"{name}.npz", allow_pickle=False)
    return types.SimpleNamespace(meta=meta, arrays=arrays, recipe=recipe, **more)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def close(oracle, key, ours, *, noise=0.0, share=2e-4, rtol=0.0, atol=None):
    """Asserts that `ours`, in the oracle's layout and full, is its array `key`.

    Numbers agree to twenty times the rounding noise that the oracle notes, or to a share of the
    range. Where it holds a slice, the mean, the deviation and the greatest magnitude of the full
    array agree to `rtol` and `atol`; by default to 2e-5 of that magnitude, and never worse than
    single numbers.
    """
    wanted, info, ours = oracle.arrays[key], oracle.meta["arrays"][key], np.asarray(ours)
    limit = max(20 * noise, share * np.abs(wanted).max())
    if "slice" in info:
        assert ours.shape == tuple(info["full_shape"]), key
        stats = oracle.arrays[f"{key}__stats"]
        atol = min(limit, 2e-5 * stats[2]) if atol is None else atol
        found = [ours.mean(dtype=np.float64), ours.std(dtype=np.float64), np.abs(ours).max()]
        np.testing.assert_allclose(found, stats, rtol=rtol, atol=atol, err_msg=key)
        ours = oracle.recipe.take(ours, info["slice"])
    assert ours.shape == wanted.shape, key
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=limit, err_msg=key)
