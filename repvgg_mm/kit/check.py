"""Whether a device computes what is expected of the engine in this folder. Needs numpy alone.

    python check.py                  run engine.onnx with onnxruntime, where that is installed
    python check.py OUTPUTS          compare 0_NAME.npy, 1_NAME.npy, ... in the folder OUTPUTS
    python check.py OUTPUTS 0.05     with another tolerance, for all outputs

NAME is that of an output, as in the folder `expected`. The exit code is 0 if all agree, and 1 if not.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
TOLERANCES = {  # by the engine's precision
    'fp32': {'values': 1e-3, 'labels': 1e-3, 'detections': 1e-3},
    'fp16': {'values': 1e-2, 'labels': 5e-3, 'detections': 1e-2},
    'int8': {'values': 1e-1, 'labels': 3e-2, 'detections': 5e-2}}
STRONG = 0.3  # of the best score: in int8 weaker detections come and go by rounding
DECIDED_BY_ROUNDING = 1 / 20  # of detections, which the worst errors may come from


def main(arguments):
    if len(arguments) > 2 or '--help' in arguments:
        sys.exit(__doc__)

    meta = json.loads((FOLDER / 'engine.json').read_text(encoding='utf-8'))
    tolerances = tolerances_of(arguments, meta)
    complaints = changed_files(meta)
    for complaint in complaints:
        print(complaint)

    outputs_of = from_folder(Path(arguments[0]), meta) if arguments else from_onnxruntime(meta)
    count = count_images(meta)
    found = [] if count else ['expected/ holds no inputs, so nothing was compared']
    for image in range(count):
        try:
            expected = from_folder(FOLDER / 'expected', meta)(image)
            errors = compare(expected, outputs_of(image), meta)
        except (OSError, ValueError, EOFError) as error:
            found.append(f'image {image}: {error}')
            continue
        for name, error in errors.items():
            tolerance = tolerances.get(name, tolerances['values'])
            print(f'image {image}, {name}: {error:.1e} (at most {tolerance:g})')
            if not error <= tolerance:
                found.append(f'image {image}: {name} differs by {error:.1e}, more than {tolerance:g}')

    for complaint in found:
        print(complaint)
    complaints += found
    print('The outputs do not agree with the expected ones.' if complaints else 'All outputs agree.')
    sys.exit(1 if complaints else 0)


def tolerances_of(arguments, meta):
    """Of values, label maps and detections: those of the precision, or the one that is asked for."""
    tolerances = TOLERANCES[meta['precision']]
    if len(arguments) < 2:
        return tolerances
    try:
        return dict.fromkeys(tolerances, float(arguments[1]))
    except ValueError:
        sys.exit(f'A tolerance is a number, such as 0.05, and this is {arguments[1]!r}.')


def changed_files(meta):
    """Sentences about files of the engine that are not those that were handed over."""
    complaints = []
    for name, sha256 in meta['files'].items():
        path = FOLDER / name
        if not path.is_file():
            complaints.append(f'{name} is missing')
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            complaints.append(f'{name} was changed: it is not the file that engine.json describes')
    return complaints


def count_images(meta):
    return len(list((FOLDER / 'expected').glob(f'*_{meta["input"]["name"]}.npy')))


def from_folder(folder, meta):
    """A function from the number of an image to its outputs by name, read from files."""
    return lambda image: {name: np.load(folder / f'{image}_{name}.npy') for name in meta['outputs']}


def from_onnxruntime(meta):
    """The same, computed."""
    try:
        import onnxruntime
    except ImportError:
        sys.exit('onnxruntime is not installed: run "python check.py OUTPUTS" with the outputs of your device.')

    try:
        session = onnxruntime.InferenceSession(str(FOLDER / 'engine.onnx'), providers=['CPUExecutionProvider'])
    except Exception as error:
        sys.exit(f'onnxruntime {onnxruntime.__version__} cannot load engine.onnx: {error}')
    name = meta['input']['name']
    print(f'Running engine.onnx with onnxruntime {onnxruntime.__version__}')

    def run(image):
        inputs = np.load(FOLDER / 'expected' / f'{image}_{name}.npy')
        try:
            return dict(zip(meta['outputs'], session.run(meta['outputs'], {name: inputs})))
        except Exception as error:
            sys.exit(f'onnxruntime {onnxruntime.__version__} cannot run engine.onnx: {error}')
    return run


def compare(expected, found, meta):
    """The error of each output. Label maps: the share of pixels that differ.

    Values: the largest difference relative to the largest value. In int8, where single values may differ by several
    steps between two libraries, RMS of both.
    """
    for name in expected:
        if expected[name].shape != found[name].shape:
            raise ValueError(f'{name} has the shape {found[name].shape} instead of {expected[name].shape}')

    rounded = meta.get('precision') == 'int8'
    if meta.get('nms') == 'inside':
        return {'detections': compare_detections(expected, found, STRONG if rounded else 0)}

    size = rms if rounded else largest
    errors = {}
    for name, one in expected.items():
        if name == 'labels':
            errors[name] = float(np.mean(one != found[name]))
        else:
            one, other = one.astype(np.float64), found[name].astype(np.float64)
            errors[name] = float(size(one - other) / max(size(one), 1e-30))
    return errors


def largest(values):
    return np.abs(values).max()


def rms(values):
    return np.sqrt(np.mean(values ** 2))


def compare_detections(expected, found, least):
    """The largest error of a box or score to the nearest of the same label on the other side, both relative.

    Rounding can decide which of two boxes is suppressed, so the worst of each twenty detections is left out. Those with
    less than the share `least` of the best score are partners alone. Masks are not compared.
    """
    size = max(np.abs(expected['boxes']).max(), 1)
    best = max(expected['scores'].max(), 1e-30)
    errors = []
    for image in range(len(expected['labels'])):
        one, other = (detected(outputs, image, size, best) for outputs in (expected, found))
        errors += to_partners(strong(one, least), other) + to_partners(strong(other, least), one)
    kept = sorted(errors)[:len(errors) - int(len(errors) * DECIDED_BY_ROUNDING)]
    return kept[-1] if kept else 0.


def detected(outputs, image, size, best):
    """Boxes with scores (D, 5), both relative, and labels (D,), of an image."""
    labels = outputs['labels'][image]
    boxes = outputs['boxes'][image].astype(np.float64) / size
    scores = outputs['scores'][image].astype(np.float64) / best
    rows = np.concatenate([boxes, scores[:, None]], 1)
    return rows[labels >= 0], labels[labels >= 0]


def strong(detections, least):
    rows, labels = detections
    kept = ~(rows[:, 4] < least)  # a score that is no number is kept, and differs
    return rows[kept], labels[kept]


def to_partners(one, other):
    """The error of each of `one` to the nearest of `other` with the same label, infinite without one."""
    rows, labels = one
    partners, partner_labels = other
    errors = []
    for row, label in zip(rows, labels):
        distances = np.abs(partners[partner_labels == label] - row).max(1)
        nearest = distances.min() if len(distances) else np.inf
        errors.append(float(np.nan_to_num(nearest, nan=np.inf, posinf=np.inf)))
    return errors


if __name__ == '__main__':
    main(sys.argv[1:])
