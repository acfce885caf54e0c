"""Faults that the tests must notice: each is put into a copy of the project, and the tests of its file are run.

    python tests/mutants.py [PART OF A FILE'S NAME]

Takes some minutes and prints those that no test noticed. Not part of `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """One edit of a file of the package, and the tests that must fail after it."""

    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant('convert/compare.py', 'difference / scale', 'difference / max(scale, 1)', 'tests/convert/test_compare.py'),
    Mutant('convert/whole.py', 'check_blocks(converted)  #', 'pass  #', 'tests/convert/test_foreign.py'),
    Mutant('convert/weights.py', 'if missing or unexpected or shapes:', 'if missing or shapes:',
           'tests/convert/test_weights.py'),
    Mutant('convert/weights.py', 'check_kinds(found, expected)', 'pass', 'tests/convert/test_weights.py'),
    Mutant('pretrained.py', "('state_dict', 'model', 'ema')", "('model', 'state_dict', 'ema')",
           'tests/test_pretrained.py'),
    Mutant('pretrained.py', "('state_dict', 'model', 'ema')", "('state_dict', 'ema', 'model')",
           'tests/test_pretrained.py'),
    Mutant('layouts.py', "for usual in ('', 'backbone.'):", "for usual in ('backbone.', ''):", 'tests/test_layouts.py'),
    Mutant('layouts.py', "layouts == {'official'} and any(", 'any(', 'tests/test_layouts.py'),
    Mutant('files/checkpoint.py', 'while record.CRC and content.read(CHUNK):', 'while content.read(CHUNK):',
           'tests/files/test_checkpoint.py tests/files/test_hostile_files.py'),
    Mutant('files/checkpoint.py', '        if fresh:\n', '        if True:\n', 'tests/files/test_download.py'),
    Mutant('files/checkpoint.py', 'if prefix in known or not trust]', ']', 'tests/files/test_checkpoint.py'),
    Mutant('files/download.py', '_check_hash(shown, path)', 'pass', 'tests/files/test_download.py'),
    Mutant('files/checkpoint.py', '_check_names(checkpoint, path)', 'pass', 'tests/files/test_hostile_files.py'),
    Mutant('files/unpickler.py', '        _check_structure(content)\n', '', 'tests/files/test_unpickler.py'),
    Mutant('files/unpickler.py', 'if type(value) is tuple]', 'if False]', 'tests/files/test_unpickler.py'),
    Mutant('files/unpickler.py', 'copied <= stored + MOST_EXPANDED', 'True', 'tests/files/test_unpickler.py'),
    Mutant('files/unpickler.py', '0 <= size <= file_size', 'True', 'tests/files/test_unpickler.py'),
    Mutant('files/tensor_file.py', 'tensor.clone() if address in seen else tensor', 'tensor',
           'tests/files/test_tensor_file.py'),
    Mutant('files/tensor_file.py', ', list(tensors[name].shape)]', ']', 'tests/files/test_tensor_file.py'),
    Mutant('demo/shapes.py', "mask.flatten(order='F')", 'mask.flatten()', 'tests/demo/test_shapes.py'),
    Mutant('fusion.py', 'all(map(operator.is_, values, self.values))', 'True', 'tests/test_kept.py'),
    Mutant('fusion.py', '            [*map(VERSION, self.kernels)] == self.versions\n', '            True\n',
           'tests/test_kept.py'),
    Mutant('fusion.py', '            and [*map(Tensor.data_ptr, self.tensors)] == self.pointers\n', '',
           'tests/test_kept.py'),
    Mutant('fusion.py', '\n            and [*map(memoryview.tobytes, self.memory)] == self.contents', '',
           'tests/test_kept.py'),
    Mutant('fusion.py', '\n            and [*map(SETTINGS, self.norms)] == self.settings', '', 'tests/test_kept.py'),
    Mutant('fusion.py', ' and _is_dense(tensor)', '', 'tests/test_kept.py'),
    Mutant('fusion.py', ' and not tensor.is_inference()', '', 'tests/test_kept.py'),
    Mutant('block.py', 'torch._C._current_graph_task_id() != -1', 'False', 'tests/test_compile.py'),
    Mutant('block.py', 'if is_compiling() or torch.jit.is_tracing():', 'if False:', 'tests/test_compile.py'),
    Mutant('files/download.py', 'socket.setdefaulttimeout(MOST_SECONDS)', 'pass',
           'tests/files/test_hostile_addresses.py'),
    Mutant('__main__.py', 'if stopped_by:', 'if False:', 'tests/commands/test_arguments.py'),
    Mutant('openmmlab/data.py', '    _check_evaluator(cfg, split)\n', '', 'tests/openmmlab/test_data.py'),
    Mutant('training/launchers.py', "'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'", "'SLURM_PROCID', 'SLURM_NTASKS'",
           'tests/training/test_launchers.py'),
    Mutant('training/launchers.py', "if name == 'mpi' and 'MASTER_ADDR' not in os.environ:", "if name == 'mpi':",
           'tests/training/test_launchers.py'),
    Mutant('training/launchers.py', "os.environ['LOCAL_RANK'] = ", "os.environ['LOCAL_RANK'] or ",
           'tests/training/test_launchers.py'),
    Mutant('training/launchers.py', 'int(count) > 1', 'int(count) > 4', 'tests/training/test_launchers.py'),
    Mutant('training/compiling.py', '[dict(group) for group in optimizer.param_groups]', 'optimizer.param_groups',
           'tests/training/test_compiling.py'),
    Mutant('training/preemption.py', '        barrier()', '        pass', 'tests/training/test_preemption.py'),
    Mutant('block.py', 'tables = [self._modules, self.branch_3x3._modules, self.branch_1x1._modules]', 'tables = []',
           'tests/test_kept.py'),
    Mutant('block.py', ' and self._has_plain_layers()', '', 'tests/test_block.py'),
    Mutant('block.py', ' or not self._has_plain_layers()', '', 'tests/test_block.py'),
    Mutant('block.py', 'if all(map(is_plain, fused)):', 'if True:', 'tests/test_kept.py'),
    Mutant('block.py', '            hooks += [layer._backward_pre_hooks, layer._backward_hooks]\n', '',
           'tests/test_block.py'),
    Mutant('fusion.py', '    while math.gcd(step, 6) > 1:', '    while False:', 'tests/test_kept.py'),
    Mutant('fusion.py', '            and [*map(Tensor.stride, self.kernels)] == self.strides\n', '',
           'tests/test_kept.py'),
    Mutant('fusion.py', '            and not any(self.hooks)\n', '', 'tests/test_block.py'),
    Mutant('block.py', ' or self._has_tensors_elsewhere()', '', 'tests/test_block.py'),
    Mutant('block.py', 'is_sharded(self) or ', '', 'tests/test_sharded.py'),
    Mutant('block.py', " and 'forward' not in layer.__dict__", '', 'tests/test_block.py'),
    Mutant('block.py', 'type(layer).forward in FORWARDS and ', '', 'tests/test_block.py'),
    Mutant('fusion.py', '            and [*map(SIZE, self.tensors)] == self.sizes\n', '', 'tests/test_kept.py'),
    Mutant('fusion.py', ' and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)', '', 'tests/test_kept.py'),
    Mutant('convert/whole.py', 'if is_sharded(module)', 'if False', 'tests/test_sharded.py'),
    Mutant('block.py', 'torch.inference_mode(False), ', '', 'tests/test_kept.py'),
    Mutant('block.py', "{**self.__dict__, '_kept': None}", 'dict(self.__dict__)', 'tests/test_kept.py'),
    Mutant('branch_sum.py', '    @once_differentiable\n', '', 'tests/test_branch_sum.py'),
    Mutant('block.py', 'weight.shape[1] < 16', 'weight.shape[1] < 15', 'tests/test_block.py tests/test_branch_sum.py'),
    Mutant('engine/detections.py', 'np.nonzero(level > threshold)', 'np.nonzero(level >= threshold)',
           'tests/engine/test_detections.py'),
    Mutant('engine/detections.py', "np.argsort(-level[rows, columns], kind='stable')",
           "np.argsort(level[rows, columns], kind='stable')[::-1]", 'tests/engine/test_detections.py'),
    Mutant('engine/detections.py', "order = np.argsort(-scores, kind='stable')",
           "order = np.argsort(scores, kind='stable')[::-1]", 'tests/engine/test_detections.py'),
    Mutant('engine/description.py', '_check_properties(file, description.openvino_properties)', 'pass',
           'tests/engine/test_description.py'),
    Mutant('export/networks.py', 'value=self.settings.pad_value', 'value=0', 'tests/export/test_networks.py'),
    Mutant('export/detectors.py', 'priors = head.anchor_center(priors)\n        else:', 'pass\n        else:',
           'tests/export/test_detectors.py tests/engine/test_detections.py'),
    Mutant('export/agreement.py', 'if not all(map(torch.equal, first, second)):', 'if False:',
           'tests/export/test_agreement.py'),
    Mutant('export/agreement.py', 'if math.isfinite(own):', 'if True:', 'tests/export/test_agreement.py'),
    Mutant('export/agreement.py', 'tolerance = max(tolerance, TIMES_AS_FAR * own)', 'pass',
           'tests/export/test_agreement.py'),
    Mutant('export/detectors.py', ' and _clips_at_the_border(head):', ':', 'tests/export/test_detectors.py'),
    Mutant('export/roi_align.py', 'if layer.aligned and layer.sampling_ratio <= 0:', 'if False:',
           'tests/export/test_roi_align.py'),
    Mutant('export/roi_align.py', "'half_pixel' if aligned", "'output_half_pixel' if aligned",
           'tests/export/test_roi_align.py'),
    Mutant('export/two_stage.py', 'torch.where(objectness[:, None] > 0, scores, 0.)', 'scores',
           'tests/export/test_two_stage.py::test_a_network_equals_mmdet'),
    Mutant('export/two_stage.py', 'scores > self.score_thr', 'scores > 0.05',
           'tests/export/test_two_stage.py::test_the_score_threshold_stands_in_the_graph_and_can_be_0'),
    Mutant('engine/model.py', '[masks[:, None]]', '[masks[:, None, ::-1].copy()]',
           'tests/export/test_two_stage.py::test_the_metric_of_masks_is_that_of_the_checkpoint'),
    Mutant('export/two_stage.py', 'mean = sum(logits) / len(logits)', 'mean = logits[-1]',
           'tests/export/test_two_stage.py::test_a_network_equals_mmdet'),
    Mutant('export/detectors.py', 'offsets[:, 0] + rows) + 1)', 'offsets[:, 0] + rows))',
           'tests/export/test_detectors.py::test_sampling_equals_mmcvs_deformable_convolution'),
    Mutant('export/detectors.py', 'best * objectness[..., None]', 'best',
           'tests/engine/test_detections.py::test_yolox_chooses_one_class_of_a_prior_and_has_no_limit'),
    Mutant('engine/detections.py', 'None if description.clipped is False else ', '',
           'tests/engine/test_detections.py'),
    Mutant('export/suppression.py', 'value_float=_next_above(iou_threshold)', 'value_float=iou_threshold',
           'tests/export/test_suppression.py'),
    Mutant('export/suppression.py', 'return max(float(above), float(np.finfo(np.float32).tiny))', 'return float(above)',
           'tests/export/test_suppression.py'),
    Mutant('export/suppression.py', 'torch.where(found, labels.gather(1, chosen), -1)', 'labels.gather(1, chosen)',
           'tests/export/test_suppression.py'),
    Mutant('export/detectors.py', 'boxes = clip(boxes, height, width)', 'pass', 'tests/export/test_detectors.py'),
    Mutant('export/detectors.py', 'values * (values > self.score_thr)', 'values', 'tests/export/test_detectors.py'),
    Mutant('export/detectors.py', 'torch.sym_min(self.nms_pre, pairs.shape[1])', 'pairs.shape[1]',
           'tests/export/test_detectors.py'),
    Mutant('export/agreement.py', 'differences += [_to_partners(one, other, scale), _to_partners(other, one, scale)]',
           'differences += [_to_partners(one, other, scale)]', 'tests/export/test_agreement.py'),
    Mutant('export/onnx_graph.py', 'if value.name == suppression.THRESHOLD:', 'if False:',
           'tests/export/test_export.py'),
    Mutant('engine/model.py', '            _check_test_cfg(engine, model)\n', '            pass\n',
           'tests/engine/test_model.py'),
    Mutant('engine/detections.py', '(labels >= 0) & _large_enough(boxes, least)', 'labels >= 0',
           'tests/engine/test_detections.py'),
    Mutant('training/resume.py', ' or is_outdated(latest):', ':', 'tests/training/test_resume.py'),
    Mutant('backbone.py', 'return 1 + blocks_before + block,', 'return blocks_before + block,',
           'tests/training/test_layer_decay.py'),
    Mutant('backbone.py', 'num_layers = 1 + sum(depths) + 1 ', 'num_layers = 1 + sum(depths) ',
           'tests/test_backbone.py'),
    Mutant('backbone.py', 'return num_layers - 1, num_layers', 'return num_layers - 2, num_layers',
           'tests/training/test_layer_decay.py'),
    Mutant('training/layer_decay.py', 'self.rate**(num_layers - 1 - depth)', 'self.rate**(num_layers - depth)',
           'tests/training/test_layer_decay.py'),
    Mutant('training/layer_decay.py', "group.get('lr', self.base_lr)", 'self.base_lr',
           'tests/training/test_layer_decay.py'),
    Mutant('training/layer_decay.py', 'not 0 < self.rate', 'not 0 <= self.rate',
           'tests/training/test_layer_decay.py'),
    Mutant('training/preemption.py', "all_reduce(agreed, 'max')", 'pass', 'tests/training/test_preemption.py'),
    Mutant('files/atomic.py', 'if free and path.is_dir():', 'if path.is_dir():', 'tests/files/test_atomic.py'),
    Mutant('engine/description.py', '_check_values(file, description)', 'pass', 'tests/engine/test_description.py'),
    Mutant('engine/openvino_file.py', '@cache\n', '', 'tests/engine/test_openvino_file.py'),
    Mutant('engine/runtimes.py', 'if absent:', 'if False:', 'tests/engine/test_engine.py'),
    Mutant('engine/runtimes.py', 'if PROVIDERS[device.kind] not in session.get_providers():', 'if False:',
           'tests/engine/test_runtimes.py'),
    Mutant('engine/runtimes.py', "if description.precision == 'int8' and device.kind == 'cuda':", 'if False:',
           'tests/engine/test_runtimes.py'),
    Mutant('engine/runtimes.py', 'np.array(outputs[output])', 'outputs[output]', 'tests/engine/test_runtimes.py'),
    Mutant('engine/runtimes.py', 'return described in (None, size)', 'return True', 'tests/engine/test_runtimes.py'),
    Mutant('engine/description.py', 'if (path.parent / name).exists()}', 'if False}', 'tests/engine/test_runtimes.py'),
    Mutant('engine/engine.py', 'if OF_VERSIONS.search(str(error)):', 'if False:', 'tests/engine/test_runtimes.py'),
    Mutant('engine/detections.py', 'if starts[-1] != priors:', 'if False:', 'tests/engine/test_detections.py'),
    Mutant('engine/onnx_file.py', "22: 'sparse tensor', ", '', 'tests/engine/test_onnx_file.py'),
    Mutant('precision/half.py', 'large.intersection([*node.input, *node.output])', 'large.intersection(node.output)',
           'tests/precision/test_half.py'),
    Mutant('precision/halve.py', 'round(expected - found, 4)', 'round(found - expected, 4)',
           'tests/precision/test_halve.py'),
    Mutant('precision/halve.py', '[*beyond, *after_last_convolutions(model)] if', 'beyond if',
           'tests/precision/test_halve.py'),
    Mutant('precision/halve.py', 'to_half(model, float32, io_dtype)', 'to_half(model, [], io_dtype)',
           'tests/precision/test_halve.py'),
    Mutant('precision/equalise.py', 'name in constants and len(all_readers[name]) == 1', 'name in constants',
           'tests/precision/test_equalise.py'),
    Mutant('precision/equalise.py', 'name in constants and len(', 'len(', 'tests/precision/test_equalise.py'),
    Mutant('precision/rounding.py', 'torch.where(place == j, given[j], left[j])', 'left[j]',
           'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', 'error, alpha=-1)', 'error, alpha=-0.9)', 'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', 'DAMPING = 0.01', 'DAMPING = 0.02', 'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', '(descending=True, stable=True)', '()', 'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', "get('pads'", "get('pads_'", 'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', 'torch.randperm(number * height * width, generator=generator)[:MOST_POSITIONS]',
           'torch.arange(0, number * height * width, -(-number * height * width // MOST_POSITIONS))',
           'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', 'images[::every])', 'images[:MOST_IMAGES])', 'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', 'if not others:', 'if True:', 'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', 'if own.isfinite().all():', 'if True:', 'tests/precision/test_rounding.py'),
    Mutant('precision/rounding.py', '.setdefault(conv.input[WEIGHTS], []).append(conv)',
           '.update({conv.input[WEIGHTS]: [conv]})', 'tests/precision/test_rounding.py'),
    Mutant('precision/quantise.py', 'QUANTISERS[engine](rounded,', 'QUANTISERS[engine](source,',
           'tests/precision/test_quantise.py'),
    Mutant('precision/qdq.py', '    _leave_others(quantised, model, chosen)\n', '', 'tests/precision/test_qdq.py'),
    Mutant('precision/qdq.py', ' or zero_point.any()', '', 'tests/precision/test_qdq.py'),
    Mutant('kit/check.py', '[] if count else', '[] if True else', 'tests/kit/test_check.py'),
    Mutant('kit/check.py', '~(rows[:, 4] < least)', 'rows[:, 4] >= least', 'tests/kit/test_check.py'),
    Mutant('kit/check.py', 'rms if rounded else largest', 'largest', 'tests/kit/test_check.py'),
    Mutant('convert/measure.py', 'if done and now - self.said >= SECONDS_BETWEEN:', 'if done:',
           'tests/convert/test_measure.py'),
    Mutant('report/charts.py', 'first.lower_ms <= latency.median_ms <= first.upper_ms', 'latency is first',
           'tests/report/test_charts.py'),
    Mutant('report/charts.py', ' if not _by_branch(name)), None)', '), None)', 'tests/report/test_charts.py'),
    Mutant('report/side_by_side.py', 'len(our_boxes) + len(other_boxes)', 'max(len(our_boxes), len(other_boxes))',
           'tests/report/test_side_by_side.py'),
    Mutant('report/mistakes.py', 'labelled = truth < classes', 'labelled = truth <= 255',
           'tests/report/test_mistakes.py'),
    Mutant('report/mistakes.py', 'truth[labelled].astype(np.int64) * classes + predicted[labelled]',
           'predicted[labelled].astype(np.int64) * classes + truth[labelled]', 'tests/report/test_mistakes.py'),
    Mutant('report/mistakes.py', 'left.max() >= MATCH', 'left.max() > MATCH', 'tests/report/test_mistakes.py'),
    Mutant('report/mistakes.py', 'table[i] = table[:, j] = -1', 'table[i] = -1',
           'tests/report/test_mistakes.py'),
    Mutant('report/mistakes.py', 'self.counts.sum(0) + self.counts.sum(1) - same',
           'self.counts.sum(0) + self.counts.sum(1)', 'tests/report/test_mistakes.py'),
    Mutant('report/mistakes.py', 'key=lambda index: -shares[index]', 'key=lambda index: shares[index]',
           'tests/report/test_mistakes.py'),
    Mutant('report/mistakes.py', 'for allowed in (same_class, ', 'for allowed in (', 'tests/report/test_mistakes.py'),
    Mutant('report/mistakes.py', 'resizes[-1]', '-1', 'tests/report/test_mistakes.py'),
    Mutant('report/mistakes_section.py', 'of_class - 2 * found', 'of_class - found',
           'tests/report/test_mistakes_section.py'),
    Mutant('report/pictures.py', 'colour @ LUMA > BRIGHT', 'False', 'tests/report/test_pictures.py'),
    Mutant('convert/choices.py', 'return source.gather(dim, choice)', 'return source.gather(dim, source.argsort(dim))',
           'tests/convert/test_choices.py'),
    Mutant('convert/choices.py', 'choice.clone()))', 'choice))', 'tests/convert/test_choices.py'),
    Mutant('convert/choices.py', 'recorded is not function or', 'False or', 'tests/convert/test_choices.py'),
    Mutant('convert/reproducible.py', 'torch.default_generator.manual_seed(0)', 'pass',
           'tests/convert/test_reproducible.py'),
    Mutant('convert/own_methods.py', '    _randomise(tried)\n', '', 'tests/convert/test_own_methods.py'),
    Mutant('convert/own_methods.py', ' or not _compute_the_same(before, after)', '',
           'tests/convert/test_own_methods.py'),
    Mutant('deploy/proof.py', 'if not errors.worst <= EXACT:', 'if False:', 'tests/deploy/test_proof.py'),
    Mutant('deploy/proof.py', 'math.isfinite(own) and converted <= TIMES_AS_FAR * own', 'True',
           'tests/deploy/test_proof.py'),
    Mutant('deploy/proof.py', 'math.isfinite(own) and ', '', 'tests/deploy/test_proof.py'),
    Mutant('training/work_dir.py', 'if own:', 'if True:', 'tests/training/test_work_dir.py'),
    Mutant('deploy/checkpoint.py', 'own != cfg[PAIR]', 'False', 'tests/deploy/test_conversion.py'),
]


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests pass with the mutant in `copy`, which is as before afterwards."""
    path = copy / 'repvgg_mm' / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f'{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times: bring the list up to date.')

    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        result = subprocess.run(
            [sys.executable, '-m', 'pytest', '-x', *mutant.tests.split()], cwd=copy, capture_output=True,
            env={**os.environ, 'PYTHONPATH': str(copy), 'OMP_NUM_THREADS': '1'})
    finally:
        path.write_text(text)
    return result.returncode == 0


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ''
    mutants = [mutant for mutant in MUTANTS if wanted in mutant.file]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'project'
        without = shutil.ignore_patterns('.venv*', '.git', 'work_dirs', '__pycache__')
        shutil.copytree(ROOT, copy, ignore=without)

        survivors = 0
        for mutant in mutants:
            lives = survives(mutant, copy)
            survivors += lives
            print(f'{"SURVIVES" if lives else "noticed "} {mutant.file}: {mutant.old.strip()!r}', flush=True)
    print(f'{survivors} of {len(mutants)} survive.')
    sys.exit(survivors > 0)


if __name__ == '__main__':
    main()
