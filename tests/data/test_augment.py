"""Augmentation of whole batches: each step is torchvision's, and so is the distribution."""

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from qcs.config.errors import UserError
from qcs.data import augment, colours, transforms
from qcs.data.datamodule import FaceDataModule

BLUR = {"blur": 0.5, "blur_sigma": (0.3, 2.0)}
KERNEL = 13  # pixels of a side, three of the largest deviation to each side
STILL = {"flip": 0.0, "jitter": (0, 0, 0, 0), "erase": 0.0, "by": "batch"}


def images(number: int = 6, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("turns", [-1 / 6, -0.1, 0.0, 0.03, 1 / 6])
def test_hue_is_torchvisions(turns):
    levels = images().float()
    levels[0, :, 0] = 77.0  # grey has no hue
    expected = F.adjust_hue(levels / 255, turns) * 255
    colours.hue(levels, torch.full((6, 1, 1, 1), turns))
    torch.testing.assert_close(levels, expected, atol=1e-3, rtol=0)


def test_hue_all_around_the_circle():
    change = transforms.training(24, **STILL | {"jitter": (0, 0, 0, 0.5)})
    levels = images().float()
    expected = F.adjust_hue(levels / 255, 0.45) * 255
    change._hue(levels, torch.full((6, 1, 1, 1), 0.45))
    torch.testing.assert_close(levels, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.7])
def test_other_colour_changes_are_torchvisions(name, factor):
    levels = images().float()
    expected = getattr(F, f"adjust_{name}")(levels / 255, factor) * 255
    getattr(colours, name)(levels, torch.full((6, 1, 1, 1), factor))
    torch.testing.assert_close(levels, expected, atol=1e-3, rtol=0)


def _reference(x: torch.Tensor, p: augment.Parameters, i: int, size: int) -> torch.Tensor:
    """One image, step by step with torchvision's functions on uint8."""
    x = F.horizontal_flip(x) if p.flip[i] else x
    x = F.rotate(x, float(p.angle[i]), InterpolationMode.BILINEAR, fill=0)
    top, left = p.corner[i].tolist()
    x = F.crop(x, top, left, size, size)
    names = ("brightness", "contrast", "saturation", "hue")
    for kind in p.order[i].tolist():
        x = getattr(F, f"adjust_{names[kind]}")(x, float(p.factors[i, kind]))
    return F.gaussian_blur(x, KERNEL, float(p.sigma[i])) if p.sigma[i] else x


def test_a_whole_pipeline_is_torchvisions_but_for_rounding():
    jitter = (0.4, 0.4, 0.4, 0.2)
    change = transforms.training(16, 24, rotation=25, jitter=jitter, by="batch", **BLUR)
    x = images(40)
    got, rectangle = change(x, 3)
    p = change.parameters(40, torch.Generator().manual_seed(3))
    assert len({tuple(order) for order in p.order.tolist()}) > 10
    for i in range(40):
        difference = (got[i].int() - _reference(x[i], p, i, 16).int()).abs()
        assert difference.float().mean() < 2 and difference.max() <= 6
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (transforms.IMAGENET_MEAN, transforms.IMAGENET_STD)
    )
    finished = change.finish(got, rectangle)
    expected = (got / 255 - mean) / std
    for face, (top, left, bottom, right) in zip(expected, rectangle.tolist(), strict=True):
        face[:, top:bottom, left:right] = 0
    torch.testing.assert_close(finished, expected)


def test_one_image_or_many_at_once_is_the_same():
    """A device takes the batch as one; the CPU image by image."""
    change = transforms.training(16, 24, rotation=25, by="batch", **BLUR)
    x = images(12)
    p = change.parameters(12, torch.Generator().manual_seed(5))
    whole = x.new_empty(12, 3, 16, 16)
    change._apply(x, p, whole)
    difference = (change(x, 5)[0].int() - whole.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01  # rounding at a half


def test_the_mask_of_a_device_is_what_the_cpu_erases():
    change = transforms.training(16, 24, erase=0.8, erase_area=(0.1, 0.4), by="batch")
    got, rectangle = change(images(12), 5)
    got, rectangle = got.unflatten(0, (3, 4)), rectangle.unflatten(0, (3, 4))
    inside = augment._inside(rectangle, got)
    assert inside.shape == (3, 4, 1, 16, 16) and 0.05 < inside.float().mean() < 0.4
    finished = change.finish(got, rectangle)
    assert not finished[inside.expand_as(got)].any()
    assert finished[~inside.expand_as(got)].abs().gt(0).float().mean() > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: pytest -m gpu")
def test_a_gpu_augments_as_the_cpu():
    jitter = (0.4, 0.4, 0.4, 0.2)
    change = transforms.training(16, 24, rotation=25, jitter=jitter, by="device", **BLUR)
    x = images(40)
    (one, corners), (other, same) = change(x, 3), change(x.cuda(), 3)
    assert (one.int() - other.cpu().int()).abs().max() <= 3  # rounding
    torch.testing.assert_close(corners, same.cpu())
    expected, found = change.finish(one, corners), change.finish(one.cuda(), corners)
    torch.testing.assert_close(expected, found.cpu())


def test_without_options_it_is_the_evaluation_transform():
    x = images()
    change = transforms.training(24, **STILL)
    torch.testing.assert_close(change.finish(*change(x, 0)), transforms.evaluation(24)(x))


def test_random_numbers_have_the_ranges_of_torchvision():
    change = transforms.training(
        20, 24, flip=0.3, rotation=12, jitter=(0.2, 0.3, 1.5, 0.1), erase=0.4, by="batch", **BLUR
    )
    p = change.parameters(20_000, torch.Generator().manual_seed(0))
    assert p.flip.float().mean().item() == pytest.approx(0.3, abs=0.015)
    low, high = p.factors.amin(0).tolist(), p.factors.amax(0).tolist()
    assert low == pytest.approx([0.8, 0.7, 0.0, -0.1], abs=0.01)
    assert high == pytest.approx([1.2, 1.3, 2.5, 0.1], abs=0.01)
    assert p.factors.mean(0).tolist() == pytest.approx([1, 1, 1.25, 0], abs=0.02)
    assert p.angle.amin() < -11.9 and p.angle.amax() > 11.9
    assert p.corner.unique().tolist() == [0, 1, 2, 3, 4]
    blurred = p.sigma[p.sigma > 0]
    assert len(blurred) / 20_000 == pytest.approx(0.5, abs=0.015)
    assert [blurred.amin(), blurred.mean(), blurred.amax()] == pytest.approx(
        [0.3, 1.15, 2], abs=0.02
    )
    orders = p.order @ torch.tensor([64, 16, 4, 1])
    assert len(orders.unique()) == 24
    assert orders.unique(return_counts=True)[1].amin() > 700  # 833 each


def test_rectangles_are_distributed_as_torchvisions():
    from torchvision.transforms import v2

    change = transforms.training(40, erase=0.5, erase_area=(0.02, 0.3), by="batch")
    ours = change.parameters(4000, torch.Generator().manual_seed(0)).rectangle
    erased = ours[:, 2] > 0
    assert erased.float().mean().item() == pytest.approx(0.5, abs=0.03)
    ours = ours[erased]
    theirs = v2.RandomErasing(1.0, scale=(0.02, 0.3))
    torch.manual_seed(0)
    drawn = [theirs.make_params([torch.zeros(3, 40, 40)]) for _ in range(2000)]
    rows = torch.tensor([[d["i"], d["j"], d["h"], d["w"]] for d in drawn]).float()
    sides = ours[:, 2:] - ours[:, :2]
    got = torch.cat([ours[:, :2], sides], 1).float()
    torch.testing.assert_close(got.mean(0), rows.mean(0), atol=0.7, rtol=0)
    torch.testing.assert_close(got.std(0), rows.std(0), atol=0.7, rtol=0)
    assert (ours[:, 2:] <= 40).all()


@pytest.mark.parametrize("by", ["batch", "device"])
def test_batches_are_the_same_for_any_number_of_workers(by, faces):
    seen = []
    for workers in (0, 2):
        data = FaceDataModule(
            faces,
            transforms.training(12, 16, by=by),
            transforms.evaluation(12, 16),
            batch_size=8,
            num_workers=workers,
        )
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.batch_sampler.sampler.set_epoch(epoch)
            batches = [data.on_after_batch_transfer(batch) for batch in loader]
            assert batches[0]["images"].shape == (8, 4, 3, 12, 12)
            assert set(batches[0]) == {"images", "labels", "rows", "share"}
            seen.append(torch.cat([batch["images"] for batch in batches]))
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_on_the_device_or_in_the_workers_is_the_same(faces):
    found = []
    for by in ("batch", "device"):
        change = transforms.training(12, 16, by=by)
        data = FaceDataModule(faces, change, transforms.evaluation(12, 16), num_workers=0)
        batch = next(iter(data.train_dataloader()))
        assert batch["images"].dtype == torch.uint8
        found.append(data.on_after_batch_transfer(batch)["images"])
    assert torch.equal(*found)


@pytest.mark.parametrize("by", ["image", "batch"])
def test_blur(by):
    """By image it is torchvision's own, and by batch the same function for a fixed deviation."""
    x = images(4, 16)
    change = transforms.training(16, **STILL | {"by": by}, blur=1.0, blur_sigma=(1.5, 1.5))
    if by == "batch":
        got = change.finish(*change(x, 0))
    else:
        got = torch.stack([change(F.to_pil_image(face)) for face in x])
    expected = transforms.evaluation(16)(F.gaussian_blur(x, 11, 1.5))
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)  # a level, 0.017: rounded once


def test_a_blur_wider_than_the_image_ends_at_its_edge():
    still = STILL | {"blur": 1.0, "blur_sigma": (50.0, 50.0)}
    got, _ = transforms.training(8, **still)(images(4, 8), 0)
    assert got.float().std((-1, -2)).amax() < 20 < images(4, 8).float().std((-1, -2)).amin()


@pytest.mark.parametrize("name", ["erase_area", "blur_sigma"])
def test_a_range_the_wrong_way_round_is_refused(name):
    with pytest.raises(UserError, match=rf"augment\.train\.{name} is from 0\.4 to 0\.1"):
        transforms.training(16, **{name: (0.4, 0.1)})


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="expected images of 24 pixels"):
        transforms.training(16, 24, by="batch")(images(size=20), 0)


@pytest.mark.parametrize("size", [16, 24, 31])  # every second pixel, and uneven steps
def test_sub_sampling_in_the_workers_is_the_networks(size):
    """Of 32 pixels, erased rectangles among them, and of 40 before a random crop."""
    blur, normal = (0.5, (0.5, 2.0)), ((0.5,) * 3, (0.2,) * 3)
    options = (40, 32, 0.5, 10.0, (0.2, 0.2, 0.2, 0.1), 1.0, (0.1, 0.4), *blur, *normal)
    faces = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8)
    whole, less = (augment.BatchAugmentation(*options) for _ in range(2))
    less.sub_sample(size)
    expected = torch.nn.functional.interpolate(whole.finish(*whole(faces, 3)), size=size)
    found, edges = less(faces, 3)
    assert found.shape[-1] == size
    torch.testing.assert_close(less.finish(found, edges), expected)
    less.sub_sample(64)
    assert less.side == 32  # never enlarged
