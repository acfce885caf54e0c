import pytest

from repvgg_mm.commands.arguments import parse
from repvgg_mm.commands.setup import check_latency_seconds, load_config
from repvgg_mm.errors import UserError

CONFIG = 'configs/pspnet_repvgg_a0_shapes.py'


@pytest.mark.parametrize('option', ['model.backbone.arch', 'a=[1,(2]', "param_scheduler=[dict(type='PolyLR',end=4)]"])
def test_an_option_that_cannot_be_read_is_refused(option):
    with pytest.raises(UserError, match='--cfg-options takes KEY=VALUE'):
        load_config(parse(['train', CONFIG, '--cfg-options', option]))


@pytest.mark.parametrize('option', ['param_scheduler.7.end=4', 'model.type.name=4'])
def test_an_option_that_does_not_fit_the_config_is_refused(option):
    args = parse(['train', CONFIG, '--cfg-options', option])
    with pytest.raises(UserError, match='does not fit it'):
        load_config(args)


def test_a_file_is_no_work_dir(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'--work-dir is a folder, and .*file is a file\. Choose another'):
        load_config(parse(['train', CONFIG, '--work-dir', str(tmp_path / 'file')]))


def test_options_reach_the_config():
    args = parse(['train', CONFIG, '--cfg-options', 'param_scheduler.1.end=7', 'crop_size=(64,32)'])
    cfg = load_config(args)
    assert cfg.param_scheduler[1].end == 7
    assert cfg.crop_size == (64, 32)


@pytest.mark.parametrize('seconds', [-1.0, float('nan')])
def test_a_time_is_not_negative(seconds):
    with pytest.raises(UserError, match=r'a time of 0 or more, got (-1|nan)\. 0 leaves measuring out\.'):
        check_latency_seconds(seconds)
    check_latency_seconds(0.0)
