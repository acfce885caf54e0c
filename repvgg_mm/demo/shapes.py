"""A generated dataset for demonstrations and tests: images, masks and COCO annotations of geometric shapes.

Shapes overlap, vary in size and angle, and lie on a noisy, shaded background. Each class has a colour
that varies from shape to shape and under the noise of the image.
"""

from __future__ import annotations

import json
import tempfile
from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError

CLASSES = ('background', 'disk', 'ring', 'square', 'triangle', 'cross')
CATEGORIES = [dict(id=label, name=name) for label, name in enumerate(CLASSES) if label > 0]
COLOURS = ((128, 128, 128), (60, 30, 220), (40, 220, 220), (220, 110, 20), (60, 190, 50), (200, 50, 190))  # BGR


def make_shapes(
    root: str | PathLike, num_train: int = 800, num_val: int = 80, size: int = 96, seed: int = 0
) -> Path:
    """Write `images/{train,val}/*.jpg`, `labels/{train,val}/*.png` and `annotations/{train,val}.json`.

    Images and masks are (size, size); a mask holds the index in `CLASSES`. The annotations are in
    COCO format: each shape's visible part as run lengths, the box x, y, width, height in pixels around
    it, and the category id as in `CLASSES`. The same arguments write the same files; those of an earlier
    call with more images go.

    Raises:
        UserError: there is less than one image of a pixel, or the files cannot be written.
    """
    root = _checked(root, num_train, num_val, size, seed)
    rng = np.random.default_rng(seed)
    _write_split(root, 'train', num_train, size, rng)
    _write_split(root, 'val', num_val, size, rng)
    return root


def make_shape_folders(
    root: str | PathLike, num_train: int = 200, num_val: int = 40, size: int = 64, seed: int = 0
) -> Path:
    """Write `{train,val}/CLASS/*.jpg` as ImageNet has it: `num_train` and `num_val` images a class, one shape in each.

    Images are (size, size). The same arguments write the same files; those of an earlier call with more images go.

    Raises:
        UserError: there is less than one image of a pixel, or the files cannot be written.
    """
    root = _checked(root, num_train, num_val, size, seed)
    rng = np.random.default_rng(seed)
    for split, count in (('train', num_train), ('val', num_val)):
        for label, name in enumerate(CLASSES[1:], 1):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = _background(rng, size)
                _draw(rng, image, label)
                cv2.imwrite(str(folder / f'{name}_{number:04d}.jpg'), _rounded(image))

            for file in folder.glob(f'{name}_[0-9][0-9][0-9][0-9].jpg'):
                if int(file.stem[-4:]) >= count:
                    file.unlink()
    return root


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (size, size, 3), its class mask and its instance mask (size, size); 0 is background."""
    image = _background(rng, size)
    mask = np.zeros((size, size), np.uint8)
    instances = np.zeros((size, size), np.uint8)
    count = rng.integers(2, 5)
    for instance in range(1, count + 1):
        label = int(rng.integers(1, len(CLASSES)))
        inside = _draw(rng, image, label)
        mask[inside] = label
        instances[inside] = instance
    return _rounded(image), mask, instances


def _write_split(root: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    """Images, masks and annotations of 'train' or 'val', in the place of those of an earlier call."""
    images_folder, labels_folder = root / 'images' / split, root / 'labels' / split
    annotations_file = root / 'annotations' / f'{split}.json'
    earlier = _listed(annotations_file)
    for folder in (images_folder, labels_folder, annotations_file.parent):
        folder.mkdir(parents=True, exist_ok=True)

    images, annotations = [], []
    for number in range(count):
        image, mask, instances = draw_scene(rng, size)
        stem = f'{number:04d}'
        earlier.discard(stem)
        cv2.imwrite(str(images_folder / f'{stem}.jpg'), image)
        cv2.imwrite(str(labels_folder / f'{stem}.png'), mask)

        images.append(dict(id=number, file_name=f'{stem}.jpg', height=size, width=size))
        for instance in np.unique(instances[instances > 0]):  # those that are not covered by others
            annotations.append(_annotation(len(annotations) + 1, number, mask, instances == instance))

    for stem in earlier:
        (images_folder / f'{stem}.jpg').unlink(missing_ok=True)
        (labels_folder / f'{stem}.png').unlink(missing_ok=True)
    coco = dict(images=images, annotations=annotations, categories=CATEGORIES)
    annotations_file.write_text(json.dumps(coco), encoding='utf-8')


def _listed(annotations: Path) -> set[str]:
    """Names without suffix of the images of an earlier call; none if the file is not one of `make_shapes`."""
    try:
        coco = json.loads(annotations.read_text(encoding='utf-8'))
        if coco['categories'] != CATEGORIES:
            return set()
        return {Path(image['file_name']).stem for image in coco['images']}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _checked(root: str | PathLike, num_train: int, num_val: int, size: int, seed: int) -> Path:
    """`root` as a folder that can be written to."""
    if min(num_train, num_val, size) < 1 or seed < 0:
        raise UserError(
            f'Shapes are drawn on 1 or more images of 1 or more pixels, got {num_train} and {num_val} '
            f'images of {size} pixels and seed {seed}. Choose larger numbers.')
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise UserError(f'{root} could not be written ({error}). Choose a folder that you can write to.') from None
    return Path(root)


def _draw(rng: np.random.Generator, image: np.ndarray, label: int) -> np.ndarray:
    """Draw one shape into `image`; returns where it is, (size, size) of bool."""
    inside = _shape(CLASSES[label], rng, len(image))
    colour = rng.normal(COLOURS[label], 15)
    noise = rng.normal(0, 10, (int(inside.sum()), 3))
    image[inside] = colour + noise
    return inside


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    coarse = rng.normal(COLOURS[0], 25, (4, 4, 3)).astype(np.float32)
    shaded = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 12, (size, size, 3))
    return shaded + noise


def _rounded(image: np.ndarray) -> np.ndarray:
    return image.clip(0, 255).astype(np.uint8)


def _shape(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Where the shape is, as a (size, size) array of bool; its radius is 1/7 to 1/4 of the image's side."""
    radius = rng.uniform(size / 7, size / 4)
    centre = rng.uniform(radius / 2, size - radius / 2, 2)
    angle = rng.uniform(0, 2 * np.pi)

    # In units of the radius, turned by the angle.
    y, x = np.mgrid[:size, :size]
    dx = (x - centre[0]) / radius
    dy = (y - centre[1]) / radius
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = -np.sin(angle) * dx + np.cos(angle) * dy
    distance = np.hypot(u, v)
    longer = np.maximum(abs(u), abs(v))
    shorter = np.minimum(abs(u), abs(v))

    if name == 'disk':
        return distance < 0.9
    if name == 'ring':
        return (distance < 1.0) & (distance > 0.5)
    if name == 'square':
        return longer < 0.8
    if name == 'triangle':
        return (v > -0.5) & (v + np.sqrt(3) * abs(u) < 1.0)
    if name == 'cross':
        return (longer < 1.0) & (shorter < 0.3)
    raise ValueError(f'A shape is one of {CLASSES[1:]}, got {name!r}.')


def _annotation(number: int, image: int, mask: np.ndarray, visible: np.ndarray) -> dict:
    """COCO's entry for what is visible of one shape."""
    ys, xs = np.nonzero(visible)
    x, y = int(xs.min()), int(ys.min())
    width = int(xs.max()) - x + 1
    height = int(ys.max()) - y + 1
    return dict(
        id=number,
        image_id=image,
        category_id=int(mask[ys[0], xs[0]]),
        iscrowd=0,
        bbox=[x, y, width, height],
        area=int(visible.sum()),
        segmentation=dict(size=list(visible.shape), counts=_run_lengths(visible)))


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's, uncompressed: pixels down the columns outside, inside, outside and so on; the first may be 0."""
    pixels = mask.flatten(order='F')
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff(changes, prepend=0, append=pixels.size).tolist()
