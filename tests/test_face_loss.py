"""MultiBox losses, distillation, mixing: special cases and a slow second implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.ops import priors as prior_ops
from jaxcomp.tasks import face_loss
from jaxcomp.tasks.face import Distillation, gradient_group
from jaxcomp.tasks.face_loss import FaceLossConfig
from jaxcomp.tasks.face_mixing import drop_blocks, mix

CFG = FaceLossConfig()
PRIORS = prior_ops.make_priors(64, 64, min_sizes=((8, 16), (24, 32), (40, 56)))
VARIANCES = (0.1, 0.2)


def slow_match(boxes, labels, priors):
    """The original's loops."""
    low, high = priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2
    real = [i for i, label in enumerate(labels) if label]
    overlap = np.zeros((len(real), len(priors)))
    for row, i in enumerate(real):
        side = np.clip(np.minimum(boxes[i, 2:], high) - np.maximum(boxes[i, :2], low), 0, None)
        inside = side.prod(1)
        union = (boxes[i, 2:] - boxes[i, :2]).prod() + priors[:, 2:].prod(1) - inside
        overlap[row] = inside / union
    if not real or overlap.max(1).max() < 0.2:
        return np.full(len(priors), -1)
    face, value = overlap.argmax(0), overlap.max(0)
    for row in range(len(real)):
        if overlap[row].max() >= 0.2:
            value[overlap[row].argmax()] = 2
    for row in range(len(real)):
        face[overlap[row].argmax()] = row
    return np.where(value < 0.35, -1, np.array(real)[face])


def random_faces(rng, most=6):
    boxes = np.zeros((most, 4), np.float32)
    labels = np.zeros(most, np.int32)
    count = int(rng.integers(0, most + 1))
    middle, side = rng.uniform(0, 1, (count, 2)), rng.uniform(0.02, 0.7, (count, 2))
    boxes[:count] = np.concatenate([middle - side / 2, middle + side / 2], 1)
    labels[:count] = rng.choice([1, -1], count)
    return boxes, labels


def test_matching_is_that_of_the_loops():
    match = jax.jit(lambda b, k: face_loss.match(b, k, PRIORS, CFG))
    rng = np.random.default_rng(0)
    for _ in range(40):
        boxes, labels = random_faces(rng)
        np.testing.assert_array_equal(match(boxes, labels), slow_match(boxes, labels, PRIORS))


def test_of_faces_with_one_best_anchor_the_later_wins():
    box = np.array([[0.3, 0.3, 0.55, 0.55], [0.3, 0.3, 0.552, 0.55]], np.float32)
    found = np.asarray(face_loss.match(box, np.array([1, 1]), PRIORS, CFG))
    best = np.asarray(face_loss.overlaps(box, PRIORS)).argmax(1)
    assert best[0] == best[1] and found[best[0]] == 1


def batch_of(seed=0, rows=3):
    rng = np.random.default_rng(seed)
    faces = [random_faces(rng) for _ in range(rows)]
    boxes, labels = np.stack([f[0] for f in faces]), np.stack([f[1] for f in faces])
    points = rng.uniform(0, 1, (*labels.shape, 10)).astype(np.float32)
    points[labels <= 0] = 0
    return {"boxes": boxes, "labels": labels, "landmarks": points, "mask": np.ones(rows)}


def maps_of(seed=0, rows=3):
    rng = np.random.default_rng(seed)
    widths = {"boxes": 4, "classes": 2, "landmarks": 10}
    return {
        k: rng.normal(size=(rows, len(PRIORS), w)).astype(np.float32) for k, w in widths.items()
    }


def test_losses_are_those_of_the_loops():
    batch, maps = batch_of(), maps_of()
    wanted = face_loss.targets(batch, PRIORS, CFG, VARIANCES)
    losses = face_loss.face_losses(maps, wanted, CFG)
    kinds = np.asarray(wanted["labels"])
    box = landmark = classes = 0.0
    for i in range(3):
        ce = np.logaddexp(maps["classes"][i, :, 0], maps["classes"][i, :, 1])
        ce = ce - np.where(kinds[i] != 0, maps["classes"][i, :, 1], maps["classes"][i, :, 0])
        positive = np.flatnonzero(kinds[i])
        rest = np.sort(ce[kinds[i] == 0])[::-1]
        classes += ce[positive].sum() + rest[: min(7 * len(positive), len(PRIORS) - 1)].sum()
        for name, rows in (("boxes", positive), ("landmarks", np.flatnonzero(kinds[i] > 0))):
            gap = np.abs(maps[name][i] - np.asarray(wanted[name][i]))[rows]
            total = np.where(gap < 1, gap**2 / 2, gap - 0.5).sum()
            box, landmark = (box + total, landmark) if name == "boxes" else (box, landmark + total)
    count, marked = (kinds != 0).sum(), (kinds > 0).sum()
    assert 0 < marked < count
    expected = {"box": box / count, "class": classes / count, "landmark": landmark / marked}
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-5)
    total = 2 * expected["box"] + expected["class"] + expected["landmark"]
    np.testing.assert_allclose(losses["total"], total, rtol=1e-5)


def test_an_image_without_faces_and_a_padded_row_cost_nothing():
    batch, maps = batch_of(), maps_of()
    alone = face_loss.face_losses(
        {k: v[:2] for k, v in maps.items()},
        face_loss.targets({k: v[:2] for k, v in batch.items()}, PRIORS, CFG, VARIANCES),
        CFG,
    )
    for change in ({"mask": np.array([1.0, 1.0, 0.0])}, {"labels": batch["labels"].copy()}):
        other = batch | change
        if "labels" in change:
            other["labels"][2] = 0
        wanted = face_loss.targets(other, PRIORS, CFG, VARIANCES)
        both = face_loss.face_losses(maps, wanted, CFG)
        for name in ("box", "class", "landmark", "total"):
            np.testing.assert_allclose(both[name], alone[name], rtol=1e-5)


def test_missing_landmarks_leave_no_gradient():
    batch = batch_of(1)
    batch["labels"] = -np.abs(batch["labels"])
    wanted = face_loss.targets(batch, PRIORS, CFG, VARIANCES)
    wanted["landmarks"] = jnp.full_like(wanted["landmarks"], jnp.inf)
    grads = jax.grad(lambda m: face_loss.face_losses(m, wanted, CFG)["total"])(maps_of())
    assert not np.any(grads["landmarks"]) and np.any(grads["boxes"])
    assert all(np.isfinite(g).all() for g in grads.values())


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    maps, batch = maps_of(), batch_of()
    wanted = face_loss.targets(batch, PRIORS, CFG, VARIANCES)

    def distance(a, b):
        return face_loss.output_distillation(a, b, wanted, CFG, 4.0, boxes=True)

    value, grads = jax.value_and_grad(distance)(maps, maps)
    assert abs(float(value)) < 1e-5
    assert all(np.abs(g).max() < 1e-5 for g in grads.values())
    assert distance(maps, maps_of(1)) > 1
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), (maps, maps_of(1), wanted))
    doubled = face_loss.output_distillation(*twice, CFG, 4.0, boxes=True)
    np.testing.assert_allclose(doubled, distance(maps, maps_of(1)), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["linear", "cosine", "exponential", "adaptive"])
def test_alpha_goes_from_its_first_to_its_last_value(strategy):
    how = Distillation(strategy=strategy, total_steps=101)
    values = np.array([how.alpha(step) for step in range(101)])
    np.testing.assert_allclose(values[[0, -1]], [0.8, 0.5], atol=1e-6)
    assert (np.diff(values) < 1e-7).all()
    assert Distillation(strategy=strategy, body_only=True).alpha(3) == 0


def test_adaptive_alpha_falls_where_the_teacher_is_no_better():
    how = Distillation(strategy="adaptive")
    assert how.adapted(jnp.float32(0.8), jnp.float32(2.0), jnp.float32(2.5)) == 0.5
    np.testing.assert_allclose(how.adapted(0.8, jnp.float32(2.0), jnp.float32(1.0)), 0.65)
    assert Distillation().adapted(0.7, 1.0, 2.0) == 0.7


def test_cutmix_moves_faces_with_their_pixels():
    rows, side = 2, 32
    image = np.stack([np.full((side, side, 3), v, np.uint8) for v in (0, 200)])
    boxes = np.tile(np.array([[0.1, 0.1, 0.3, 0.3], [0.7, 0.7, 0.9, 0.9]], np.float32), (2, 1, 1))
    batch = {
        "image": image, "boxes": boxes, "labels": np.ones((rows, 2), np.int32),
        "landmarks": np.zeros((rows, 2, 10), np.float32), "mask": np.ones(rows, np.float32),
    }  # fmt: skip
    seen = set()
    for seed in range(12):
        out = jax.device_get(mix(batch, jax.random.key(seed), 0.0, 1.0))
        for row in range(rows):
            for box, label, own in zip(
                out["boxes"][row], out["labels"][row], (True, True, False, False), strict=True
            ):
                x, y = ((box[:2] + box[2:]) / 2 * side).astype(int)
                mine = (out["image"][row, y, x, 0] == image[row, 0, 0, 0]) == own
                assert bool(label) == mine
                seen.add((own, bool(label)))
    assert len(seen) == 4
    assert mix(batch, jax.random.key(0), 0.0, 0.0).keys() == batch.keys()


def test_mixup_blends_by_its_share():
    batch = {"image": np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 200)]).astype(np.uint8)}
    out = mix(batch, jax.random.key(1), 0.4, 0.0)
    assert 0.5 <= out["share"] <= 1
    np.testing.assert_allclose(out["image"][1], 200 * out["share"], atol=1)
    np.testing.assert_allclose(out["image"][0], 200 * (1 - out["share"]), atol=1)


def test_dropblock_drops_squares_and_keeps_the_mean():
    x = {"p3": jnp.ones((8, 16, 16, 4))}
    out = np.asarray(drop_blocks(jax.random.key(0), 0.2, 3, x)["p3"])
    assert 0.05 < (out == 0).mean() < 0.4
    np.testing.assert_allclose(out.mean(), 1, atol=0.01)
    assert drop_blocks(jax.random.key(0), 0.0, 3, x) is x


def test_groups_of_layers():
    assert gradient_group("context_2/branch3/kernel") == "context"
    assert gradient_group("body_gates/channel0/squeeze/kernel") == "body_gates"
    assert gradient_group("neck/cell0/p4_top_weights") == "neck"
